"""Files behind an image file: a header names data files of its own folder alone, and pipes are not waited for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from fusionseg import cli
from fusionseg.data.formats.image_file import VolumeError
from fusionseg.data.formats.readers import Readers
from fusionseg.data.preprocessing.record import SourceFile

SECRET = bytes(range(240)) * 4
HEADERS = {
    "a.mhd": "ObjectType = Image\nNDims = 3\nDimSize = 8 10 12\nElementSpacing = 1 1 1\nElementType = MET_UCHAR\n"
    "BinaryData = True\nElementDataFile = {}\n",
    "a.nhdr": "NRRD0004\ntype: uint8\ndimension: 3\nspace: left-posterior-superior\nsizes: 8 10 12\n"
    "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nencoding: raw\ndata file: {}\n",
}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("data", ["../secret.raw", "{folder}/secret.raw", "sub/../../secret.raw", ".", "a\0b"])
def test_a_header_names_no_file_of_another_folder(tmp_path: Path, name: str, data: str) -> None:
    """Any file of the machine would be an image otherwise, and its bytes would be in masks and reports."""
    (tmp_path / "secret.raw").write_bytes(SECRET)
    (tmp_path / "theirs").mkdir()
    path = tmp_path / "theirs" / name
    path.write_text(HEADERS[name].format(data.format(folder=tmp_path)))
    with pytest.raises(VolumeError, match="which is not in its folder; put the data file beside the header"):
        Readers().read(path)
    assert Readers().files(path) == [path], "the hash of the case would depend on the file"


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("data", ["a.raw", "./a.raw", "parts/a.raw", "parts/../a.raw", "{folder}/a.raw"])
def test_a_header_names_a_file_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts").mkdir()
    for path in (tmp_path / "a.raw", tmp_path / "parts" / "a.raw"):
        path.write_bytes(SECRET)
    header = Path(name)  # relative to the working directory
    header.write_text(HEADERS[name].format(data.format(folder=tmp_path)))
    assert Readers().read(header).voxels.tobytes(order="F") == SECRET
    assert len(Readers().files(header)) == 2


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha", "a.nrrd", "a.npy", "a.dcm"])
def test_a_pipe_and_a_device_are_no_images(tmp_path: Path, name: str) -> None:
    for folder, make in (("pipe", os.mkfifo), ("device", lambda path: Path(path).symlink_to("/dev/zero"))):
        path = tmp_path / folder / name
        path.parent.mkdir()
        make(path)
        for read in (Readers().read, Readers().read_geometry):
            with pytest.raises(VolumeError, match="it is a pipe or a device, not a file"):
                read(path)
        assert Readers().image_files(path.parent) in ([path], []), "listing does not wait"
        with pytest.raises(OSError, match="it is a pipe or a device"):
            SourceFile.read(path)


@pytest.mark.parametrize("name", HEADERS)
def test_a_data_file_that_is_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "a.raw")
    (tmp_path / name).write_text(HEADERS[name].format("a.raw"))
    with pytest.raises(VolumeError, match="it is a pipe or a device, not a file"):
        Readers().read(tmp_path / name)


def test_check_names_a_header_that_leads_out_and_a_pipe(
    make_dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_dataset(tmp_path / "Task77_theirs", cases=3)
    content = json.loads((root / "dataset.json").read_text())
    (tmp_path / "secret.raw").write_bytes(SECRET)
    header, pipe = root / "imagesTr/case_000.mhd", root / "imagesTr/case_001.nii.gz"
    header.write_text(HEADERS["a.mhd"].format("../../secret.raw"))
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 10, 12), np.uint8), np.eye(4)), root / "labelsTr/case_000.nii.gz")
    pipe.unlink()
    os.mkfifo(pipe)
    content["training"][0]["image"] = "./imagesTr/case_000.mhd"
    (root / "imagesTr/case_000.nii.gz").unlink()
    (root / "dataset.json").write_text(json.dumps(content))
    assert cli.main(["check", str(root)]) == 1
    text = "".join(capsys.readouterr())
    assert "names the data file '../../secret.raw', which is not in its folder" in text
    assert f"{pipe.name}" in text
    assert "it is a pipe or a device" in text
