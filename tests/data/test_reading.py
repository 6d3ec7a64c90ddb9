"""The one reader: values as nibabel gives them, the geometry rule, and what is turned to the image's grid."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from fusionseg.data.formats.case_reader import (
    examine_image,
    examine_label,
    read_case,
    read_grid,
    read_image,
    read_label,
)
from fusionseg.data.formats.geometry import Grid, find_turn
from fusionseg.data.formats.problems import CaseError, Findings
from fusionseg.data.formats.readers import nifti
from fusionseg.data.formats.readers.nifti import read_header, read_volume
from fusionseg.data.labels.scheme import LabelScheme

TWO = LabelScheme.of_names("01")
SHAPE = (5, 6, 7)
AXES = np.linalg.qr(np.array([[0.9, -0.2, 0.1], [0.2, 1.1, 0.0], [-0.1, 0.05, 2.5]]))[0]
TURNED = np.eye(4)
TURNED[:3, :3], TURNED[:3, 3] = AXES * np.sign(np.diag(AXES)) * (1.0, 1.5, 2.5), (-30, 12, 7)
"""An oblique grid of no cubes."""

Change = Callable[[Any], Any]


def save(path: Path, array: NDArray[Any], affine: Any = TURNED, change: Change | None = None) -> Path:
    """Write a volume; `change` edits the header's fields in the bytes that nibabel has written."""
    nibabel.save(nibabel.Nifti1Image(array, affine, dtype=array.dtype), path)
    if change is not None:
        content = bytearray(gzip.decompress(path.read_bytes()))
        header = nibabel.Nifti1Header(bytes(content[:348]), check=False)
        change(header)
        content[:348] = header.binaryblock
        path.write_bytes(gzip.compress(bytes(content)))
    return path


def noise(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(-1000, 1000, shape, np.int16)


def found(path: Path) -> list[tuple[str, str]]:
    findings = Findings()
    examine_image([path], None, findings)
    return [(problem.severity, problem.code) for problem in findings.problems]


# -- values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
@pytest.mark.parametrize("endianness", "<>")
@pytest.mark.parametrize("version", [1, 2])
def test_values_are_those_of_nibabel(tmp_path: Path, version: int, endianness: str, scaled: bool) -> None:
    kind, header_kind = (
        (nibabel.Nifti1Image, nibabel.Nifti1Header) if version == 1 else (nibabel.Nifti2Image, nibabel.Nifti2Header)
    )
    rng = np.random.default_rng(0)
    for dtype in ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]:
        array = (100 * rng.normal(size=SHAPE)).astype(dtype)
        image = kind(array, TURNED, header_kind(endianness=endianness), dtype=dtype)
        path = tmp_path / f"{dtype}.nii.gz"
        if scaled:
            image.header.set_slope_inter(0.37, -11.3)
            header = image.header.copy()
            header["vox_offset"], header["magic"] = header.single_vox_offset, header.single_magic
            raw = header.binaryblock + bytes(header.single_vox_offset - len(header.binaryblock))
            path.write_bytes(gzip.compress(raw + array.astype(header.get_data_dtype()).tobytes(order="F")))
        else:
            nibabel.save(image, path)
        theirs = nibabel.load(path)
        assert theirs.header.endianness == endianness and (theirs.dataobj.slope != 1) == scaled
        expected = np.asarray(theirs.dataobj)
        ours = read_volume(path).values
        assert ours.dtype.newbyteorder("=") == expected.dtype.newbyteorder("=")
        np.testing.assert_array_equal(ours, expected)
        read = read_image([path])
        np.testing.assert_array_equal(read.values[0], expected.astype(np.float32))
        np.testing.assert_array_equal(read.grid.affine, theirs.affine)
        assert read_header(path).shape == SHAPE and read_grid([path]).shape == SHAPE


def test_nobody_else_opens_an_image() -> None:
    """A second reader would have other tolerances."""
    package = Path(nifti.__file__).parents[2]
    readers = re.compile(r"(nib|nibabel)\.load\b|\bLoadImage|get_fdata|\bdataobj\b|import SimpleITK")
    found = [
        f"{path.name}: {line.strip()}"
        for path in package.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if readers.search(line) and "nibabel.load stops" not in line
    ]
    assert found == []


def test_channels_are_joined_and_a_trailing_axis_of_one_is_none(tmp_path: Path) -> None:
    parts = noise((*SHAPE, 3))
    whole = read_image([save(tmp_path / "4d.nii.gz", parts)], 3)
    files = [save(tmp_path / f"{c}.nii.gz", parts[..., c]) for c in range(3)]
    np.testing.assert_array_equal(whole.values, np.moveaxis(parts, -1, 0))
    np.testing.assert_array_equal(read_image(files, 3).values, whole.values)
    single = read_image([save(tmp_path / "1.nii.gz", parts[..., :1])], 1)
    np.testing.assert_array_equal(single.values[0], parts[..., 0])
    label = (parts[..., :1] > 0).astype(np.uint8)
    np.testing.assert_array_equal(read_label(save(tmp_path / "l.nii.gz", label), single.grid, TWO), label[..., 0])


def test_capital_suffixes_are_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", noise()).rename(tmp_path / "A.NII.GZ")
    np.testing.assert_array_equal(read_image([path]).values[0], noise())


# -- the geometry rule ---------------------------------------------------------------------------------------

OTHER = TURNED.copy()
OTHER[:3, 3] += 40


@pytest.mark.parametrize(
    ("sform", "qform", "counts"),
    [((OTHER, 1), (TURNED, 1), OTHER), ((OTHER, 0), (TURNED, 1), TURNED), ((OTHER, 4), (TURNED, 0), OTHER)],
    ids=["both", "qform", "sform"],
)
def test_which_affine_counts(tmp_path: Path, sform: Any, qform: Any, counts: NDArray[np.float64]) -> None:
    image = nibabel.Nifti1Image(noise(), None)
    image.header.set_zooms((1.0, 1.5, 2.5))
    image.header.set_sform(*sform)
    image.header.set_qform(*qform)
    nibabel.save(image, tmp_path / "a.nii.gz")
    grid = read_grid([tmp_path / "a.nii.gz"])
    np.testing.assert_allclose(grid.affine, counts, atol=1e-5)
    np.testing.assert_array_equal(grid.affine, nibabel.load(tmp_path / "a.nii.gz").affine)


def test_pixdim_alone(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(noise(), None)
    image.header.set_zooms((1.0, 1.5, 2.5))
    nibabel.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_grid([tmp_path / "a.nii.gz"]).affine, nibabel.load(tmp_path / "a.nii.gz").affine)


def of_qform(header: Any) -> None:
    """Make the qform count."""
    header["sform_code"], header["qform_code"] = 0, 1


def with_pixdim(axis: int, value: float, *, qform: bool = False) -> Change:
    def change(header: Any) -> None:
        header["pixdim"][axis] = value
        if qform:
            of_qform(header)

    return change


def with_unit(code: int, factor: float = 1.0) -> Change:
    def change(header: Any) -> None:
        header["xyzt_units"] = code
        for row in ("srow_x", "srow_y", "srow_z"):
            header[row] = header[row] * factor
        header["pixdim"][1:4] *= factor
        header["qform_code"] = 0

    return change


HEADERS: dict[str, tuple[list[tuple[str, str]], Change]] = {
    "as it is": ([], lambda header: None),
    "zero": ([("error", "spacing")], with_pixdim(2, 0)),
    "negative": ([("error", "spacing")], with_pixdim(1, -1)),
    "negative, qform": ([("error", "spacing")], with_pixdim(1, -1, qform=True)),
    "not a number": ([("error", "spacing")], with_pixdim(3, np.nan)),
    "infinite": ([("error", "spacing")], with_pixdim(3, np.inf)),
    "pixdim says otherwise": ([("warning", "pixdim")], with_pixdim(2, 3)),
    "no handedness, qform": ([], with_pixdim(0, 0, qform=True)),
    "odd handedness, qform": ([("error", "affine")], with_pixdim(0, 7, qform=True)),
    "singular": ([("error", "affine")], lambda header: header["srow_z"].fill(0)),
    "affine not a number": ([("error", "affine")], lambda header: header["srow_z"].fill(np.nan)),
    "impossible quaternion": ([("error", "affine")], lambda h: (of_qform(h), h.__setitem__("quatern_b", 3))),
    "no unit": ([], with_unit(0)),
    "unknown unit": ([], with_unit(6)),
    "microns": ([("warning", "units")], with_unit(3, 1e3)),
    "metres": ([("warning", "units")], with_unit(1, 1e-3)),
    "mm that are called metres": ([("error", "spacing")], with_unit(1)),
    "slides": ([("warning", "units")], with_unit(3, 0.25)),
    "electron microscopy": ([], with_unit(2, 4e-6)),
    "below a nanometre": ([("error", "spacing")], with_unit(2, 1e-7)),
    "thick": ([], with_unit(2, 30)),
    "absurd": ([("error", "spacing")], with_unit(2, 2000)),
    "tilted gantry": (
        [("warning", "pixdim"), ("warning", "shear")],
        lambda header: header["srow_x"].__setitem__(2, 0.7),
    ),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers(tmp_path: Path, case: str) -> None:
    expected, change = HEADERS[case]
    path = save(tmp_path / "a.nii.gz", noise(), np.diag([1, 1.5, 2.5, 1.0]), change)
    assert found(path) == expected
    for read in (read_image, read_grid):
        if any(severity == "error" for severity, _ in expected):
            with pytest.raises(CaseError):
                read([path])
        else:
            read([path])


@pytest.mark.parametrize(("code", "factor"), [(3, 1e3), (1, 1e-3), (0, 1), (2, 1)])
def test_units_are_converted_to_mm(tmp_path: Path, code: int, factor: float) -> None:
    path = save(tmp_path / "a.nii.gz", noise(), change=with_unit(code, factor))
    np.testing.assert_allclose(read_grid([path]).affine, TURNED, atol=1e-5)


# -- channel against channel, label against image ------------------------------------------------------------


def stored_as(axes: str, array: NDArray[Any], affine: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The same volume along other axes, by nibabel."""
    transform = ornt_transform(io_orientation(affine), axcodes2ornt(axes))
    return apply_orientation(array, transform), affine @ inv_ornt_aff(transform, array.shape)


@pytest.mark.parametrize("axes", ["LPS", "RAI", "SAR", "PIR", "ALS", "IRP"])
def test_other_voxel_orders_are_turned(tmp_path: Path, axes: str) -> None:
    image, label = noise(), (noise(seed=1) > 0).astype(np.uint8)
    other, affine = stored_as(axes, label, TURNED)
    paths = save(tmp_path / "i.nii.gz", image), save(tmp_path / "l.nii.gz", other, affine)
    ours, turned = read_case([paths[0]], paths[1], 1, TWO)
    np.testing.assert_array_equal(turned, label)
    assert turned is not None and turned.flags["C_CONTIGUOUS"]
    findings = Findings()
    examine_label(paths[1], ours.grid, TWO, findings)
    (problem,) = findings.problems
    assert (problem.severity, problem.code) == ("warning", "label-order")
    assert f"is stored as {axes}" in problem.message
    second, affine = stored_as(axes, noise(seed=2), TURNED)
    channels = read_image([paths[0], save(tmp_path / "c.nii.gz", second, affine)], 2)
    np.testing.assert_array_equal(channels.values[1], noise(seed=2))


def moved(by: float, axis: int = 0) -> NDArray[np.float64]:
    """TURNED, moved by so many voxels along an axis of the volume."""
    affine = TURNED.copy()
    affine[:3, 3] += by * affine[:3, axis]
    return affine


@pytest.mark.parametrize(
    ("affine", "severity"),
    [
        (TURNED + 1e-6 * np.eye(4, k=1), None),
        (moved(5e-4), None),
        (moved(0.005), "warning"),
        (moved(0.09, 2), "warning"),
        (moved(0.11, 2), "error"),
        (moved(0.5), "error"),
        (moved(150), "error"),
        (np.eye(4), "error"),
        (TURNED @ np.diag([1, 1.05, 1, 1]), "error"),
    ],
)
@pytest.mark.parametrize("axes", ["", "LPS", "SAR"])
def test_how_far_apart_is_how_bad(tmp_path: Path, affine: NDArray[np.float64], severity: str | None, axes: str) -> None:
    label = np.zeros(SHAPE, np.uint8)
    if axes:
        label, affine = stored_as(axes, label, affine)
    image = save(tmp_path / "i.nii.gz", noise())
    path, second = save(tmp_path / "l.nii.gz", label, affine), save(tmp_path / "c.nii.gz", noise(label.shape), affine)
    findings = Findings()
    read = examine_image([image, second], 2, findings)
    assert read is not None
    examine_label(path, read.grid, LabelScheme.of_names("0"), findings)
    apart = [
        p for p in findings.problems if p.code in ("label-affine", "channel-affine", "label-shape", "channel-shape")
    ]
    assert [p.severity for p in apart] == ([] if severity is None else [severity] * 2)


def test_a_turn_is_the_way_from_one_grid_to_the_other() -> None:
    rng = np.random.default_rng(0)
    for axes in ("RAS", "LPS", "SAR", "PIR"):
        array = rng.integers(0, 9, SHAPE)
        other, affine = stored_as(axes, array, TURNED)
        turn, voxels, mm = find_turn(Grid(other.shape, affine), Grid(SHAPE, TURNED))
        assert turn is not None and max(voxels, mm) < 1e-9
        np.testing.assert_array_equal(turn(other), array)


# -- labels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.array([0, 3]), r"the label holds \[3\], and the data set's labels are 0 to 2 \(105 voxels\)"),
        (np.array([0, 255]), r"holds \[255\]"),
        (np.array([0, 256], np.int16), r"holds \[256\]"),
        (np.array([-1, 2], np.int16), r"holds \[-1\]"),
        (np.array([0, 2**40 + 1]), r"holds \[1.0995\d+e\+12\]"),
        (np.array([0, 0.99999], np.float32), r"not integers, such as \[0.99999\], in 105 voxels"),
        (np.array([0, np.nan], np.float32), r"not integers, such as \[nan\]"),
        (np.array([0, np.inf], np.float32), "not integers"),
    ],
)
def test_label_values_that_name_no_class(tmp_path: Path, values: NDArray[Any], said: str) -> None:
    label = values[(np.arange(210) % 2).reshape(SHAPE)]
    path = save(tmp_path / "l.nii.gz", label.astype(np.uint8) if label.max() == 255 else label)
    with pytest.raises(CaseError, match=said):
        read_label(path, Grid(SHAPE, TURNED), LabelScheme.of_names("012"))


def test_a_scaled_label_is_whole_as_far_as_float32_can_say(tmp_path: Path) -> None:
    def change(header: Any) -> None:
        header["scl_slope"], header["scl_inter"] = 1 / 3, 0

    label = (np.arange(210) % 3).reshape(SHAPE)
    path = save(tmp_path / "l.nii.gz", (3 * label).astype(np.uint8), change=change)
    np.testing.assert_array_equal(read_label(path, Grid(SHAPE, TURNED), LabelScheme.of_names("012")), label)


def test_all_problems_of_a_case_are_told_at_once(tmp_path: Path) -> None:
    image = noise().astype(np.float32)
    image[0, 0, 0] = np.nan
    paths = save(tmp_path / "i.nii.gz", image), save(tmp_path / "l.nii.gz", noise(), np.eye(4))
    with pytest.raises(CaseError) as caught:
        read_case([paths[0]], paths[1], 1, TWO)
    assert [problem.code for problem in caught.value.problems] == ["non-finite", "label-affine", "label-value"]
    assert all(str(path) in str(caught.value) for path in paths)
    assert "i.nii.gz: has 1 NaN and 0 infinite voxels of 210; replace them" in str(caught.value)


def test_a_channel_without_contrast_is_a_warning_and_an_image_without_any_an_error(tmp_path: Path) -> None:
    flat = np.full(SHAPE, 7, np.int16)
    assert found(save(tmp_path / "a.nii.gz", flat)) == [("error", "constant")]
    assert found(save(tmp_path / "b.nii.gz", np.stack([noise(), flat], -1))) == [("warning", "constant-channel")]
    assert found(save(tmp_path / "c.nii.gz", np.stack([flat, flat], -1))) == [("error", "constant")] * 2
