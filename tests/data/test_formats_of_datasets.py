"""Data sets whose files are not NIfTI: check, preparation and layouts treat them as the same voxels in NIfTI."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import preparing
import pydicom
import pytest
import SimpleITK
from dicom_files import write_series

from fusionseg.cli import main
from fusionseg.config import RunConfig
from fusionseg.data.formats.dataset import open_dataset
from fusionseg.data.formats.geometry import LPS_TO_RAS
from fusionseg.utils.errors import UserError

CASES = 3
FORMATS = [".mha", ".nhdr", ".hdr", ".npy", "dicom"]  # one of each reader


def convert(nifti: Path, suffix: str) -> Path:
    """Replace a NIfTI file by the same volume in another format; "dicom" makes a folder of slices."""
    path = nifti.with_name(nifti.name.removesuffix(".nii.gz") + suffix.replace("dicom", ""))
    volume = nibabel.load(nifti)
    voxels = np.asarray(volume.dataobj)
    if suffix == "dicom":
        write_series(path, voxels.astype(np.int16) + 1024, LPS_TO_RAS @ volume.affine)
    elif suffix == ".npy":
        np.save(path, voxels)
        path.with_suffix(".json").write_text(json.dumps({"affine": volume.affine.tolist()}))
    else:
        SimpleITK.WriteImage(SimpleITK.ReadImage(str(nifti)), str(path))
    nifti.unlink()
    return path


def relist(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((root / "dataset.json").read_text())
    change(content)
    (root / "dataset.json").write_text(json.dumps(content))


@pytest.fixture
def plain(make_dataset: Callable[..., Path], tmp_path: Path) -> Path:
    root: Path = make_dataset(tmp_path / "plain", cases=CASES, shape=(10, 9, 8))
    return root


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_data_set_in_another_format_prepares_the_same_arrays(
    plain: Path,
    tmp_path: Path,
    suffix: str,
    make_dataset: Callable[..., Path],
    tiny_config: Callable[..., RunConfig],
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = make_dataset(tmp_path / "other", cases=CASES, shape=(10, 9, 8))
    for image in sorted((root / "imagesTr").glob("*.nii.gz")):
        convert(image, suffix)
    if suffix != "dicom":  # labels in the format of the images, where it stores label maps
        for label in sorted((root / "labelsTr").glob("*.nii.gz")):
            convert(label, suffix)

    def rename(content: dict[str, Any]) -> None:
        for entry in content["training"]:
            entry["image"] = entry["image"].replace(".nii.gz", suffix.replace("dicom", ""))
            if suffix != "dicom":
                entry["label"] = entry["label"].replace(".nii.gz", suffix)

    relist(root, rename)
    assert main(["check", str(root), "--workers", "1"]) == 0
    # The warning is about the orientations of the cases, which differ.
    assert f"{CASES} cases, 0 errors, 1 warning\n" in capsys.readouterr().out
    stores = []
    for place in (plain, root):
        config = tiny_config(place, tmp_path / "runs")
        assert preparing.run(config).failed == {}
        stores.append(preparing.opened(config))
        assert preparing.run(config).prepared == []  # nothing has changed
    expected, found = stores
    assert found.cases.keys() == expected.cases.keys() and len(found.cases) == CASES
    for name in found.cases:
        np.testing.assert_array_equal(found.image(name), expected.image(name))
        np.testing.assert_array_equal(found.label(name), expected.label(name))
        assert found.cases[name].digest == expected.cases[name].digest
        np.testing.assert_allclose(found.cases[name].affine, expected.cases[name].affine, atol=1e-4)


def test_a_changed_slice_is_prepared_again(plain: Path, tmp_path: Path, tiny_config: Callable[..., RunConfig]) -> None:
    folder = convert(plain / "imagesTr/case_001.nii.gz", "dicom")
    relist(plain, lambda content: content["training"][1].update(image="imagesTr/case_001"))
    config = tiny_config(plain, tmp_path / "runs")
    assert len(preparing.run(config).prepared) == CASES
    for path in folder.iterdir():
        path.touch()
    assert preparing.run(config).prepared == []
    path = sorted(folder.iterdir())[3]
    dataset = pydicom.dcmread(path)
    dataset.PixelData = dataset.PixelData[::-1]
    dataset.save_as(path)
    assert preparing.run(config).prepared == ["case_001"]
    path.unlink()
    (reason,) = preparing.run(config).failed.values()
    assert "1 slice is missing" in reason


def test_a_datalist_of_series_names_cases_by_their_folders(plain: Path) -> None:
    entries = []
    for index in range(CASES):
        name = f"case_{index:03d}"
        target = plain / f"patient.{index}/CT"
        target.parent.mkdir()
        convert(plain / f"imagesTr/{name}.nii.gz", "dicom").rename(target)
        entries.append({"image": f"patient.{index}/CT", "label": f"labelsTr/{name}.nii.gz"})
    (plain / "list.json").write_text(json.dumps({"training": entries, "labels": ["background", "ball"]}))
    dataset = open_dataset(plain / "list.json")
    assert [case.name for case in dataset.training] == [f"patient.{index}_CT" for index in range(CASES)]
    assert dataset.channels == ("image",)
    entries[0]["image"] = "patient.0/PET"
    (plain / "list.json").write_text(json.dumps({"training": entries, "labels": ["background", "ball"]}))
    with pytest.raises(UserError, match=r"patient\.0/PET: file missing"):
        open_dataset(plain / "list.json")


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nii"])
def test_the_file_ending_of_nnunet(tmp_path: Path, ending: str, make_dataset: Callable[..., Path]) -> None:
    root = make_dataset(tmp_path / "d", cases=CASES, shape=(10, 9, 8), layout="nnunet")
    for file in sorted(root.glob("*Tr/*.nii.gz")):
        convert(file, ending)
    relist(root, lambda content: content.update(file_ending=ending))
    dataset = open_dataset(root)
    assert [case.images[0].name for case in dataset.training] == [f"case_{i:03d}_0000{ending}" for i in range(CASES)]
    assert main(["check", str(root), "--workers", "1"]) == 0


def test_suffixes_in_capitals_are_those_of_the_file_ending(tmp_path: Path, make_dataset: Callable[..., Path]) -> None:
    root = make_dataset(tmp_path / "d", cases=CASES, layout="nnunet")
    for name in ("imagesTr/case_000_0000", "labelsTr/case_000"):
        (root / f"{name}.nii.gz").rename(root / f"{name}.NII.GZ")
    assert [case.name for case in open_dataset(root).training] == ["case_000", "case_001", "case_002"]
    (root / "labelsTr/case_001.NII.GZ").write_bytes((root / "labelsTr/case_001.nii.gz").read_bytes())
    with pytest.raises(UserError, match=r"case_001\.nii\.gz: case_001\.NII\.GZ has the same name but for its suffix"):
        open_dataset(root)


@pytest.mark.real_data
def test_the_real_series_is_checked_and_prepared_as_its_slices_say(
    real_data: Path, tmp_path: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    """The slices are read here by pydicom and their positions alone."""
    files = (real_data / "ct_dicom/series").iterdir()
    slices = sorted((pydicom.dcmread(path) for path in files), key=lambda one: one.ImagePositionPatient[2])[8:12]
    series = tmp_path / "series"
    series.mkdir()
    for one in slices:  # four slices are enough, and take a fifth of the time
        shutil.copy(one.filename, series)
    expected = np.stack([one.pixel_array * one.RescaleSlope + one.RescaleIntercept for one in slices], -1)
    label = (expected > 200).astype(np.uint8)
    affine = np.diag([*slices[0].PixelSpacing, 2.0, 1.0])
    affine[:3, 3] = slices[0].ImagePositionPatient
    image = nibabel.Nifti1Image(label.transpose(1, 0, 2), LPS_TO_RAS @ affine)
    nibabel.save(image, tmp_path / "label.nii.gz")
    listing = {"training": [{"image": str(series), "label": "label.nii.gz"}], "labels": ["background", "bone"]}
    (tmp_path / "list.json").write_text(json.dumps(listing))
    assert main(["check", str(tmp_path / "list.json"), "--workers", "1"]) == 0
    config = tiny_config(tmp_path / "list.json", tmp_path / "runs", data={"orientation": "RAS", "folds": 1})
    assert preparing.run(config).failed == {}
    store = preparing.opened(config)
    (record,) = store.cases.values()
    assert record.spacing == pytest.approx((0.9765625, 0.9765625, 2.0)) and record.shape == (512, 512, 4)
    np.testing.assert_array_equal(store.label(record.name), label.transpose(1, 0, 2)[::-1, ::-1])
    stored = np.asarray(store.image(record.name)[0], np.float64)[::-1, ::-1].transpose(1, 0, 2)
    # The intensities are normalised, which is linear for this configuration.
    assert np.corrcoef(stored.ravel(), expected.ravel())[0, 1] > 0.999
