"""NRRD, MetaImage, NIfTI pairs and .npy: the same volume as SimpleITK and nibabel see it, and damaged files."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK
from dicom_files import oblique, write_series
from numpy.typing import NDArray

from fusionseg.data.formats.case_reader import read_case, read_image, read_label
from fusionseg.data.formats.dataset import open_dataset
from fusionseg.data.formats.geometry import LPS_TO_RAS
from fusionseg.data.formats.image_file import ImageFile, VolumeError
from fusionseg.data.formats.readers import Readers
from fusionseg.data.formats.source_files import files_of
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.data.preprocessing.record import SourceFile
from fusionseg.utils.errors import UserError

SHAPE = (7, 6, 5)
LPS = oblique()
RAS = LPS_TO_RAS @ LPS
READERS = Readers()
ITK_NAMES = ["a.mha", "a.mhd", "a.nrrd", "a.nhdr", "a.hdr", "a.img", "a.nii", "a.nii.gz", "A.MHA", "A.NRRD"]


def noise(dtype: str = "int16", shape: tuple[int, ...] = SHAPE, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 120, shape).astype(dtype)


def itk_image(volume: NDArray[Any], affine: NDArray[np.float64] = LPS) -> Any:
    """A SimpleITK image of a volume (X, Y, Z), or (X, Y, Z, C) with channels, and an affine in LPS."""
    image = SimpleITK.GetImageFromArray(volume.transpose(2, 1, 0, *range(3, volume.ndim)), isVector=volume.ndim == 4)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(sizes.tolist())
    image.SetDirection((affine[:3, :3] / sizes).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def write(path: Path, volume: NDArray[Any], affine: NDArray[np.float64] = LPS, *, compress: bool = False) -> Path:
    """Write a volume with SimpleITK."""
    lower = path.with_name(path.name.lower())
    SimpleITK.WriteImage(itk_image(volume, affine), str(lower), useCompression=compress)
    return lower.rename(path)


def read(path: Path) -> ImageFile:
    """Read a file; its header alone says the same."""
    content, geometry = READERS.read(path), READERS.read_geometry(path)
    assert geometry.shape == content.voxels.shape and geometry.problems == content.problems
    np.testing.assert_array_equal(geometry.affine, content.affine)
    return content


def refused(path: Path) -> VolumeError:
    with pytest.raises(VolumeError) as caught:
        READERS.read(path)
    return caught.value


# -- the same volume as other programs see it ----------------------------------------------------------------


@pytest.mark.parametrize("name", ITK_NAMES)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float64"])
def test_a_volume_is_the_one_that_simpleitk_wrote(tmp_path: Path, name: str, dtype: str) -> None:
    compressed = name.lower().endswith(("mha", "mhd", "nrrd", "nhdr"))
    for compress in (False, True) if compressed else (False,):
        path = write(tmp_path / name, noise(dtype), compress=compress)
        content = read(path)
        assert content.problems == () and content.voxels.dtype == dtype
        np.testing.assert_array_equal(content.voxels, noise(dtype))
        np.testing.assert_allclose(content.affine, RAS, atol=1e-5)
        assert READERS.stem(path).lower() == "a"


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd", "a.nhdr"])
@pytest.mark.parametrize("channels", [2, 3])
def test_channels_come_first(tmp_path: Path, name: str, channels: int) -> None:
    content = read(write(tmp_path / name, noise(shape=(*SHAPE, channels))))
    np.testing.assert_array_equal(content.voxels, np.moveaxis(noise(shape=(*SHAPE, channels)), -1, 0))
    np.testing.assert_allclose(content.affine, RAS, atol=1e-5)


def test_a_pair_of_nibabel_and_its_scaling(tmp_path: Path) -> None:
    for suffix in (".img", ".img.gz"):
        image = nibabel.Nifti1Pair(noise("float32") / 7, RAS)
        image.set_data_dtype(np.int16)
        nibabel.save(image, tmp_path / f"a{suffix}")
        expected = np.asarray(nibabel.load(tmp_path / f"a{suffix}").dataobj)
        content = read(tmp_path / f"a{suffix.replace('img', 'hdr')}")
        assert content.stored_type == "int16 scaled"
        np.testing.assert_array_equal(content.voxels, expected)
        np.testing.assert_allclose(content.affine, RAS, atol=1e-5)
    assert [path.name for path in READERS.image_files(tmp_path)] == ["a.hdr", "a.hdr.gz"]
    nibabel.AnalyzeImage(noise(), np.eye(4)).to_filename(tmp_path / "old.img")
    assert "Analyze 7.5, which does not state the orientation" in refused(tmp_path / "old.hdr").message


@pytest.mark.parametrize(("space", "to_ras"), [("right-anterior-superior", np.eye(4)), ("LAS", np.diag([-1, 1, 1, 1]))])
def test_spaces_and_units_of_nrrd(tmp_path: Path, space: str, to_ras: NDArray[np.float64]) -> None:
    header = {"space": space, "space directions": 1e3 * LPS[:3, :3].T, "space origin": 1e3 * LPS[:3, 3]}
    nrrd.write(str(tmp_path / "a.nrrd"), noise(), {**header, "space units": ["microns"] * 3})
    content = read(tmp_path / "a.nrrd")
    np.testing.assert_allclose(content.affine, to_ras @ LPS, atol=1e-9)
    assert [problem.code for problem in content.problems] == ["units"]
    nrrd.write(str(tmp_path / "b.nrrd"), noise(), {**header, "space units": ["furlong"] * 3})
    assert "space units are furlong" in refused(tmp_path / "b.nrrd").message


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
def test_encodings_of_nrrd(tmp_path: Path, encoding: str) -> None:
    header = {"space": "LPS", "space directions": LPS[:3, :3].T, "space origin": LPS[:3, 3], "encoding": encoding}
    nrrd.write(str(tmp_path / "a.nrrd"), noise(), header)
    np.testing.assert_array_equal(read(tmp_path / "a.nrrd").voxels, noise())


def test_a_header_without_directions_is_a_warning_and_without_spacing_an_error(tmp_path: Path) -> None:
    nrrd.write(str(tmp_path / "a.nrrd"), noise(), {"spacings": [0.8, 0.9, 2.5]})
    path = write(tmp_path / "a.mha", noise(), np.diag([0.8, 0.9, 2.5, 1.0]))
    path.write_bytes(path.read_bytes().replace(b"TransformMatrix", b"Comment"))
    for name in ("a.nrrd", "a.mha"):
        content = read(tmp_path / name)
        assert [(problem.severity, problem.code) for problem in content.problems] == [
            ("warning", "orientation-unknown")
        ]
        np.testing.assert_allclose(content.affine, LPS_TO_RAS @ np.diag([0.8, 0.9, 2.5, 1.0]))
    nrrd.write(str(tmp_path / "a.nrrd"), noise(), {})
    path.write_bytes(path.read_bytes().replace(b"ElementSpacing", b"Comment"))
    assert [refused(tmp_path / name).code for name in ("a.nrrd", "a.mha")] == ["spacing", "spacing"]


@pytest.mark.parametrize("stated", [{"spacing": [0.8, 0.9, 2.5]}, {"affine": RAS.tolist(), "labels": {"1": "a"}}])
def test_an_array_with_a_stated_spacing(tmp_path: Path, stated: dict[str, Any]) -> None:
    np.save(tmp_path / "a.npy", noise())
    np.save(tmp_path / "c.npy", np.asfortranarray(noise(shape=(2, *SHAPE))))
    for name in ("a", "c"):
        (tmp_path / f"{name}.json").write_text(json.dumps(stated))
        content = read(tmp_path / f"{name}.npy")
        np.testing.assert_array_equal(content.voxels, np.load(tmp_path / f"{name}.npy"))
        np.testing.assert_allclose(content.affine, stated.get("affine", np.diag([0.8, 0.9, 2.5, 1.0])))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"states no voxel spacing, and there is no a\.json beside it.*spacing.*in mm"),
        ("{", r"a\.json is not valid JSON"),
        ('{"spacin": [1, 1, 1]}', r"a\.json holds spacin \(did you mean spacing\?\)"),
        ("{}", r"a\.json holds no entry"),
        ('{"spacing": [1, 1]}', r"spacing is \[1, 1\]"),
        ('{"spacing": [1, 1, 0]}', r"not above 0"),
        ('{"spacing": ["x", 1, 0]}', r"spacing is"),
        ('{"affine": [[1, 0], [0, 1]]}', r"affine is"),
    ],
)
def test_an_array_without_a_stated_spacing_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    np.save(tmp_path / "a.npy", noise())
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    assert refused(tmp_path / "a.npy").code == "spacing"
    with pytest.raises(VolumeError, match=message):
        READERS.read_geometry(tmp_path / "a.npy")


# -- damage --------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def lengthened(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def flipped(path: Path) -> None:
    """Change a byte in the middle of the compressed voxels."""
    content = bytearray(path.read_bytes())
    content[-len(content) // 8] ^= 0xFF
    path.write_bytes(content)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def other_format(path: Path) -> None:
    path.write_bytes(b"not an image\n" * 50)


@pytest.mark.parametrize(
    ("name", "compress"),
    [("a.mha", False), ("a.mha", True), ("a.mhd", True), ("a.nrrd", False), ("a.nrrd", True), ("a.nhdr", False),
     ("a.hdr", False), ("a.npy", False)],
)  # fmt: skip
def test_damaged_files_are_refused(tmp_path: Path, name: str, compress: bool) -> None:
    def fresh() -> Path:
        if name == "a.npy":
            np.save(tmp_path / name, noise())
            (tmp_path / "a.json").write_text('{"spacing": [1, 1, 1]}')
            return tmp_path / name
        return write(tmp_path / name, noise(), compress=compress)

    path = fresh()
    data = next((file for file in files_of(path) if file.suffix not in (path.suffix, ".json")), path)
    for damage, codes in (
        (cut, {"truncated"}),
        (lengthened, {"trailing-data"}),
        (emptied, {"truncated", "header"}),
        *([(flipped, {"corrupt"})] if compress else []),
    ):
        fresh()
        damage(data)
        assert refused(path).code in codes, damage
    fresh()
    other_format(path)
    assert refused(path).code == "header"
    fresh()
    if data != path:
        data.unlink()
        assert data.name in refused(path).message and refused(path).code == "missing"
    path.unlink()
    assert refused(path).code == "missing"


def test_files_that_hold_no_volume_are_named(tmp_path: Path) -> None:
    nrrd.write(str(tmp_path / "a.nrrd"), noise(), {"space": "LPS", "space directions": np.zeros((3, 3))})
    assert [problem.code for problem in READERS.read(tmp_path / "a.nrrd").problems] == ["affine"]
    start = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\n"
    for field in ("spacings: 1 1", "space: LPS\nspace directions: (1,0,0) (0,1,0)"):
        (tmp_path / "b.nrrd").write_text(f"{start}{field}\nencoding: raw\n\n")
        assert "does not fit 3 axes" in refused(tmp_path / "b.nrrd").message
    (tmp_path / "b.nrrd").write_text(f"{start}spacings: 1 1 1\nencoding: ascii\n\n1 2 3 4 5 6 7 x")
    assert "other than numbers" in refused(tmp_path / "b.nrrd").message
    nrrd.write(str(tmp_path / "b.nrrd"), noise(), {"spacings": [1, 1, 1], "encoding": "bzip2"})
    with (tmp_path / "b.nrrd").open("ab") as file:
        file.write(b"more")
    assert refused(tmp_path / "b.nrrd").code == "trailing-data"
    (tmp_path / "c.nrrd").write_text(f"{start}spacings: 1 1 1\nencoding: raw\ndata file: c.raw\n")
    (tmp_path / "c.raw").write_bytes(bytes(8))
    assert READERS.files(tmp_path / "c.nrrd") == [tmp_path / "c.nrrd", tmp_path / "c.raw"]
    path = write(tmp_path / "a.mha", noise())
    path.write_bytes(path.read_bytes().replace(b"LOCAL", b"Local"))
    np.testing.assert_array_equal(READERS.read(path).voxels, noise())
    path = write(tmp_path / "a.mhd", noise())
    path.write_text(path.read_text().replace("a.raw", "LIST"))
    assert "several data files" in refused(path).message
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    assert "data type object" in refused(tmp_path / "a.npy").message


# -- labels and mixed formats --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["label.nrrd", "label.mha", "label.img", "label.npy"])
def test_a_label_in_another_format_than_the_image(tmp_path: Path, name: str) -> None:
    write_series(tmp_path / "series", noise())
    label = noise("uint8") % 3
    if name == "label.npy":
        np.save(tmp_path / name, label)
        (tmp_path / "label.json").write_text(json.dumps({"affine": RAS.tolist()}))
    else:
        write(tmp_path / name, label)
    image, mask = read_case([tmp_path / "series"], tmp_path / name, 1, LabelScheme.of_names("012"))
    np.testing.assert_array_equal(mask, label)
    np.testing.assert_array_equal(image.values[0], noise() - 1024)


def test_a_segmentation_of_slicer_covers_a_part_of_the_image(tmp_path: Path) -> None:
    image = write(tmp_path / "image.mha", noise())
    label = np.zeros(SHAPE, np.uint8)
    label[2:5, 1:3, 1:4] = 2
    part = label[1:6, 1:5, 1:4]
    origin = (LPS @ (1, 1, 1, 1))[:3]
    header = {
        "space": "left-posterior-superior", "space directions": LPS[:3, :3].T, "space origin": origin,
        "Segment0_ID": "Segment_1", "Segment0_LabelValue": "2", "Segmentation_ReferenceImageExtentOffset": "1 1 1",
    }  # fmt: skip
    nrrd.write(str(tmp_path / "label.seg.nrrd"), part, header)
    grid = read_image([image], 1).grid
    np.testing.assert_array_equal(read_label(tmp_path / "label.seg.nrrd", grid, LabelScheme.of_names("012")), label)
    assert READERS.stem(tmp_path / "label.seg.nrrd") == "label"
    header["space directions"] = np.vstack([np.full(3, np.nan), LPS[:3, :3].T])
    nrrd.write(
        str(tmp_path / "layers.seg.nrrd"), np.stack([part, part]), {**header, "kinds": ["list", *["domain"] * 3]}
    )
    assert "3D Slicer segmentation of 2 layers" in refused(tmp_path / "layers.seg.nrrd").message


# -- sources and packages ------------------------------------------------------------------------------------


def test_a_source_of_several_files_notices_a_change_of_each(tmp_path: Path) -> None:
    slices = write_series(tmp_path / "series", noise())
    write(tmp_path / "a.mhd", noise())
    for path, part in ((tmp_path / "series", slices[3]), (tmp_path / "a.mhd", tmp_path / "a.raw")):
        source = SourceFile.read(path)
        assert source.unchanged(path) and source.size == sum(file.stat().st_size for file in files_of(path))
        content = bytearray(part.read_bytes())
        part.write_bytes(content)  # another time stamp, the same content
        assert source.unchanged(path)
        content[-1] ^= 1
        part.write_bytes(content)
        assert not source.unchanged(path)
        part.unlink()
        assert not source.unchanged(path)
    assert not SourceFile.read(tmp_path / "series").unchanged(tmp_path / "gone")


@pytest.mark.parametrize(("package", "name"), [("pydicom", "series"), ("nrrd", "a.nrrd")])
def test_a_missing_package_names_the_command_that_installs_it(
    tmp_path: Path, package: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "series", noise())
    write(tmp_path / "a.nrrd", noise())
    plain: Callable[..., Any] = importlib.import_module

    def blocked(wanted: str, *rest: Any) -> Any:
        if wanted.partition(".")[0] == package:
            raise ImportError(f"No module named {wanted!r}")
        return plain(wanted, *rest)

    monkeypatch.setattr(importlib, "import_module", blocked)
    error = refused(tmp_path / name)
    assert error.code == "package" and f"the package {package} is not installed" in error.message
    assert error.remedy == "pip install 'fusionseg[formats]'"
    entries = [{"image": name}, {"image": str(tmp_path / name)}]
    (tmp_path / "list.json").write_text(json.dumps({"training": entries}))
    with pytest.raises(UserError, match=rf"{name}: the package {package} is not installed") as caught:
        open_dataset(tmp_path / "list.json", require_files=False)
    assert str(caught.value).count("not installed") == 1
    assert READERS.reads_folder(tmp_path / "series")  # by the first bytes of its files
