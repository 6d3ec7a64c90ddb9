"""Files of masks: geometry, values and names by independent readers, and their origin."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import oblique, write_series
from numpy.typing import NDArray

from fusionseg import cli
from fusionseg.data.formats.case import Case
from fusionseg.data.formats.geometry import LPS_TO_RAS
from fusionseg.data.formats.image_file import VolumeError
from fusionseg.data.formats.readers import Readers
from fusionseg.inference.mask_formats.choice import FORMATS, choose_format
from fusionseg.inference.mask_formats.mask import Mask
from fusionseg.inference.masks import cases_without_mask, mask_path, origin_of, read_origin
from fusionseg.utils.errors import UserError, WriteError

SHAPE = (11, 9, 6)
NAMES = {0: "background", 1: "liver", 3: "größerer Tumor", 300: "spleen"}


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """An oblique DICOM series."""
    voxels = np.random.default_rng(1).integers(0, 900, SHAPE).astype(np.int16)
    write_series(tmp_path / "series", voxels, oblique())
    return tmp_path / "series"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A NIfTI file on the grid of `series`."""
    values = np.zeros(SHAPE, np.int16)
    nibabel.save(nibabel.Nifti1Image(values, LPS_TO_RAS @ oblique()), tmp_path / "image.nii.gz")
    return tmp_path / "image.nii.gz"


def values(dtype: type = np.uint8) -> NDArray[Any]:
    """A mask without symmetry, with values of NAMES."""
    mask = np.zeros(SHAPE, dtype)
    mask[2:5, 1:3, 1:4], mask[7, 4:, 2] = 1, 3
    if dtype is np.uint16:
        mask[0, 8, 5] = 300
    return mask


def write(name: str, image: Path, folder: Path, mask: NDArray[Any]) -> Path:
    """Write a mask as `predict` does."""
    case = Case("case", (image,), None)
    target = mask_path(folder, case, FORMATS[name])
    names = {value: text for value, text in NAMES.items() if value <= np.iinfo(mask.dtype).max}
    FORMATS[name].write(
        Mask(mask, names, image, Readers()), target, lambda digest: str(origin_of(case, "m" * 14, digest))
    )
    return target


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", ["nifti", "nrrd", "mha", "npy"])
def test_a_mask_lies_where_its_image_lies(image: Path, tmp_path: Path, name: str, dtype: type) -> None:
    target = write(name, image, tmp_path / "masks", values(dtype))
    found = Readers().read(target)
    assert found.voxels.dtype == dtype and np.array_equal(found.voxels, values(dtype))
    assert np.allclose(found.affine, LPS_TO_RAS @ oblique(), atol=1e-5)
    origin = read_origin(target, FORMATS[name])
    assert origin is not None and origin.predictor == "m" * 14 and origin.is_of(Case("case", (image,), None))


def test_other_programs_read_the_masks(image: Path, tmp_path: Path) -> None:
    """SimpleITK reads MHA and NRRD; 3D Slicer's fields name the classes."""
    for name in ("mha", "nrrd"):
        found = sitk.ReadImage(str(write(name, image, tmp_path, values())))
        assert np.array_equal(sitk.GetArrayFromImage(found).transpose(2, 1, 0), values())
        point = found.TransformIndexToPhysicalPoint((7, 4, 2))
        assert np.allclose(point, (oblique() @ (7, 4, 2, 1))[:3], atol=1e-4)
    header = nrrd.read_header(str(tmp_path / "case.seg.nrrd"))
    named = {header[f"Segment{k}_LabelValue"]: header[f"Segment{k}_Name"] for k in range(2)}
    assert named == {"1": "liver", "3": "grosserer Tumor"} and header["Segment1_Extent"] == "0 10 0 8 0 5"
    write("npy", image, tmp_path, values())
    assert json.loads((tmp_path / "case.json").read_text())["labels"]["3"] == "größerer Tumor"


def test_a_dicom_seg_refers_to_its_slices(series: Path, tmp_path: Path) -> None:
    """By pydicom alone: each frame has the position of the slice that it names, and the pixels of the mask there."""
    target = write("dicom-seg", series, tmp_path / "masks", values(np.uint16))
    found = pydicom.dcmread(target)
    slices = {one.SOPInstanceUID: one for one in map(pydicom.dcmread, series.iterdir())}
    first = next(iter(slices.values()))
    assert found.FrameOfReferenceUID == first.FrameOfReferenceUID and found.StudyInstanceUID == first.StudyInstanceUID
    assert [one.SegmentLabel for one in found.SegmentSequence] == ["liver", "größerer Tumor", "spleen"]
    assert [one.get("SegmentDescription") for one in found.SegmentSequence] == [None, "value 3", "value 300"]
    numbers = {1: 1, 2: 3, 3: 300}
    pixels = found.pixel_array.reshape(-1, found.Rows, found.Columns)
    seen = np.zeros(SHAPE, np.uint16)
    for plane, frame in zip(pixels, found.PerFrameFunctionalGroupsSequence, strict=True):
        source = slices[frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(list(position), list(source.ImagePositionPatient), atol=1e-6)
        index = np.linalg.inv(oblique()) @ (*map(float, position), 1)
        assert np.allclose(index[:2], 0, atol=1e-4)
        segment = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        seen[:, :, round(index[2])][plane.T > 0] = numbers[segment]
    assert np.array_equal(seen, values(np.uint16))
    shared = found.SharedFunctionalGroupsSequence[0]
    assert np.allclose(shared.PlaneOrientationSequence[0].ImageOrientationPatient, first.ImageOrientationPatient)
    assert list(shared.PixelMeasuresSequence[0].PixelSpacing) == list(first.PixelSpacing)
    origin = read_origin(target, FORMATS["dicom-seg"])
    assert origin is not None and origin.is_of(Case("other", (series,), None))


@pytest.mark.parametrize("names", [NAMES, {0: "background", 1: "liver"}], ids=["several classes", "one class"])
@pytest.mark.parametrize("filled", [0, 3, SHAPE[2]])
def test_masks_of_few_or_all_slices_as_dicom_seg(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: dict[int, str], filled: int
) -> None:
    """With one class, the number of the segment is stored once for all frames; an empty mask has a frame too."""
    monkeypatch.setattr("test_mask_formats.NAMES", names)
    mask = np.zeros(SHAPE, np.uint8)
    mask[2, 3, :filled] = 1
    target = write("dicom-seg", series, tmp_path, mask)
    found = pydicom.dcmread(target)
    assert np.count_nonzero(found.pixel_array) == filled
    assert found.NumberOfFrames == (filled or len(found.SegmentSequence))
    assert [one.SegmentLabel for one in found.SegmentSequence] == [names[k] for k in sorted(names) if 0 < k < 256]
    assert read_origin(target, FORMATS["dicom-seg"]) is not None


@pytest.mark.real_data
def test_bones_in_a_real_series(real_data: Path, tmp_path: Path) -> None:
    """Bones by their HU, marked through the reader, are where pydicom alone finds them, as NIfTI and as DICOM-SEG."""
    series = real_data / "ct_dicom/series"
    content = Readers().read(series)
    bones = (content.voxels > 300).astype(np.uint8)
    mask = nibabel.load(write("nifti", series, tmp_path, bones))
    found = pydicom.dcmread(write("dicom-seg", series, tmp_path, bones))
    frames = {
        frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID: plane
        for frame, plane in zip(found.PerFrameFunctionalGroupsSequence, found.pixel_array, strict=True)
    }
    values = np.asarray(mask.dataobj)
    planes = set()
    for path in series.iterdir():
        dataset = pydicom.dcmread(path)
        expected = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept) > 300
        position = [float(value) for value in dataset.ImagePositionPatient]
        index = np.linalg.inv(mask.affine) @ LPS_TO_RAS @ (*position, 1)
        assert np.allclose(index, [0, 0, round(index[2]), 1], atol=1e-3)
        planes.add(round(index[2]))
        assert np.array_equal(values[:, :, round(index[2])].T > 0, expected)
        assert np.array_equal(frames[dataset.SOPInstanceUID] > 0, expected)
    assert planes == set(range(20)) and bones.any()


def without(series: Path, name: str) -> None:
    for path in series.iterdir():
        dataset = pydicom.dcmread(path)
        delattr(dataset, name)
        dataset.save_as(path)


def test_images_that_have_no_dicom_seg(series: Path, image: Path) -> None:
    with pytest.raises(VolumeError, match=r"is no DICOM series, .*; choose --format nifti"):
        FORMATS["dicom-seg"].check(image, Readers())
    FORMATS["dicom-seg"].check(series, Readers())
    first = next(series.iterdir())
    dataset = pydicom.dcmread(first)
    dataset.FrameOfReferenceUID += "1"
    dataset.save_as(first)
    with pytest.raises(VolumeError, match="have several values of FrameOfReferenceUID"):
        FORMATS["dicom-seg"].check(series, Readers())
    without(series, "FrameOfReferenceUID")
    with pytest.raises(VolumeError, match="lack FrameOfReferenceUID"):
        FORMATS["dicom-seg"].check(series, Readers())


def test_a_series_of_which_highdicom_makes_nothing(series: Path, tmp_path: Path) -> None:
    for path in series.iterdir():
        dataset = pydicom.dcmread(path)
        with pytest.warns(UserWarning, match="Invalid value for VR DA"):
            dataset.PatientBirthDate = "unknown"
        dataset.save_as(path)
    with pytest.raises(VolumeError, match="no DICOM-SEG can be made of its slices"):
        write("dicom-seg", series, tmp_path / "masks", values())
    assert not (tmp_path / "masks").exists()


def test_the_chosen_one_of_two_series(series: Path, tmp_path: Path) -> None:
    write_series(series, np.zeros((4, 4, 3), np.int16), name=lambda index: f"b{index}", description="venous")
    target, readers = tmp_path / "case.dcm", Readers(series="Thorax")
    FORMATS["dicom-seg"].check(series, readers)
    FORMATS["dicom-seg"].write(Mask(values(), {1: "a", 3: "b"}, series, readers), target, str)
    found = pydicom.dcmread(target)
    assert len(found.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == SHAPE[2]


@pytest.mark.parametrize(
    ("image", "suffix"),
    [
        ("a.nii.gz", ".nii.gz"), ("a.HDR", ".nii.gz"), ("a.nrrd", ".seg.nrrd"), ("a.nhdr", ".seg.nrrd"),
        ("a.MHA", ".mha"), ("a.mhd", ".mha"), ("a.npy", ".npy"), ("a.dcm", ".dcm"), ("series", ".dcm"), (".", ".dcm"),
        ("empty", ".nii.gz"), ("a.own", ".nii.gz"),
    ],
)  # fmt: skip
def test_the_format_of_the_input(series: Path, tmp_path: Path, image: str, suffix: str) -> None:
    (tmp_path / "empty").mkdir()  # as the folder of a reader of the user's own
    assert choose_format("input", tmp_path / image).suffix == suffix
    assert choose_format("mha", tmp_path / image).suffix == ".mha"


def edit_nrrd(path: Path) -> None:
    found, header = nrrd.read(str(path), index_order="F")
    found[0, 0, 0] = 1
    nrrd.write(str(path), found, header, index_order="F")


def edit_mha(path: Path) -> None:
    found = sitk.ReadImage(str(path))
    found[0, 0, 0] = 1
    sitk.WriteImage(found, str(path))


def edit_npy(path: Path) -> None:
    found = np.load(path)
    found[0, 0, 0] = 1
    np.save(path, found)


def edit_seg(path: Path) -> None:
    found = pydicom.dcmread(path)
    found.PixelData = bytes([found.PixelData[0] ^ 1]) + found.PixelData[1:]
    found.save_as(path)


EDITS: dict[str, Callable[[Path], None]] = {
    "nrrd": edit_nrrd, "mha": edit_mha, "npy": edit_npy, "dicom-seg": edit_seg,
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_own_masks_are_recognised_in_each_format(series: Path, image: Path, tmp_path: Path, name: str) -> None:
    """Only a mask that this program wrote is made again; one that was corrected since, or damaged, is refused."""
    of = series if name == "dicom-seg" else image
    case, folder = Case("case", (of,), None), tmp_path / "masks"
    target = write(name, of, folder, values())

    def due(predictor: str = "m" * 14, *, skip_existing: bool = False) -> list[Case]:
        return cases_without_mask([case], folder, predictor, format_name=name, skip_existing=skip_existing)

    assert due() == [case] and due(skip_existing=True) == [] and due("n" * 14, skip_existing=True) == [case]
    EDITS[name](target)
    with pytest.raises(UserError, match=r"case.*: was not written by fusionseg predict, or was changed since"):
        due()
    assert due(skip_existing=True) == []
    for content in (b"", target.read_bytes()[:-40], b"notes"):
        target.write_bytes(content)
        with pytest.raises(UserError, match="these files are not replaced"):
            due()


def test_the_mask_of_an_image_that_has_changed_since_is_made_again(image: Path, tmp_path: Path) -> None:
    """The content counts: a new time stamp alone does not, and a file that is older than its mask is not read."""
    case = Case("case", (image,), None)
    target = write("npy", image, tmp_path / "masks", values())

    def due() -> list[Case]:
        return cases_without_mask([case], target.parent, "m" * 14, format_name="npy", skip_existing=True)

    later = target.stat().st_mtime + 10
    os.utime(image, (later, later))
    assert due() == []
    image.write_bytes(image.read_bytes() + b"0")
    os.utime(image, (later, later))
    assert due() == [case]


def test_an_array_that_was_not_written_to_the_end(image: Path, tmp_path: Path) -> None:
    """The JSON file of a mask is there and the array is not, as after a kill: it is written again. Others are kept."""
    case = Case("case", (image,), None)
    write("npy", image, tmp_path, values()).unlink()
    for skip_existing in (False, True):
        due = cases_without_mask([case], tmp_path, "m" * 14, format_name="npy", skip_existing=skip_existing)
        assert due == [case]
    (tmp_path / "case.json").write_text('{"affine": []}')
    with pytest.raises(UserError, match=r"case.npy: was not written by fusionseg predict"):
        cases_without_mask([case], tmp_path, "m" * 14, format_name="npy", skip_existing=False)


@pytest.mark.parametrize("name", FORMATS)
def test_a_full_disk_leaves_no_part_of_a_mask(
    series: Path, image: Path, small_disk: Callable[[str], Path], name: str
) -> None:
    disk = small_disk("8k")
    (disk / "other").write_bytes(bytes(4096))
    # A DICOM-SEG has the shape of its series; its references to the slices alone are larger than the disk.
    shape = SHAPE if name == "dicom-seg" else (120, 100, 6)
    large = np.random.default_rng(0).integers(0, 2, shape, np.uint8)
    with pytest.raises(WriteError, match=r"case.*: cannot be written: (No space left on device|\d+ requested)"):
        write(name, series if name == "dicom-seg" else image, disk, large)
    assert [path.name for path in disk.iterdir()] == ["other"]


# -- the command ---------------------------------------------------------------------------------------------------


def predict(run: Path, given: Path, output: Path, *options: str) -> int:
    return cli.main(["predict", str(run), "-i", str(given), "-o", str(output), "--device", "cpu", *options])


def test_a_folder_of_dicom_cases(tiny_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One series for each case, at any depth; a broken one costs its own mask only. Masks overlay the slices."""
    run, cases = tiny_run(), tmp_path / "cases"
    rng = np.random.default_rng(2)
    for folder in ("p1/study/s1", "p2"):
        write_series(cases / folder, rng.integers(0, 900, (20, 18, 16)).astype(np.int16))
    write_series(cases / "p3", rng.integers(0, 900, (20, 18, 4)).astype(np.int16))
    write_series(cases / "p3", rng.integers(0, 900, (20, 18, 4)).astype(np.int16), name=lambda index: f"other{index}")
    assert predict(run, cases, cases / "masks") == 2
    assert f"{cases}/masks: is in the folder of the inputs, {cases}, and the next prediction" in capsys.readouterr().err
    output = tmp_path / "masks"
    assert predict(run, cases, output, "--format", "input") == 1
    said = capsys.readouterr()
    assert f"{cases}, a folder for each case: 3 cases" in said.err and "1 of 3 inputs have no mask: p3" in said.err
    assert sorted(path.name for path in output.iterdir()) == ["p1_study_s1.dcm", "p2.dcm", "prediction.json"]
    assert predict(run, cases / "p2", output) == 0
    mask = nibabel.load(output / "p2.nii.gz")
    for path in (cases / "p2").iterdir():  # each slice lies on a plane of the mask
        position = [float(value) for value in pydicom.dcmread(path).ImagePositionPatient]
        index = np.linalg.inv(mask.affine) @ LPS_TO_RAS @ (*position, 1)
        assert np.allclose(index, [0, 0, round(index[2]), 1], atol=1e-3) and 0 <= round(index[2]) < 16
    # The DICOM-SEG marks the same voxels. Slices without a segment are left out, and the axes may be in another order.
    of_seg, whole = Readers().read(output / "p2.dcm"), np.asarray(mask.dataobj)
    marked = np.argwhere(of_seg.voxels)
    places = np.c_[marked, np.ones(len(marked))] @ (np.linalg.inv(mask.affine) @ of_seg.affine).T
    x, y, z, _ = np.rint(places).astype(int).T
    assert np.allclose(places, np.rint(places), atol=1e-3)
    assert np.array_equal(whole[x, y, z], of_seg.voxels[tuple(marked.T)])
    assert len(marked) == np.count_nonzero(whole) > 0


def test_formats_that_do_not_suit(
    tiny_run: Any, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run()
    assert predict(run, image, tmp_path / "m", "--format", "dicom-seg") == 2
    said = capsys.readouterr().err
    assert "error: --format dicom-seg: does not suit these inputs:" in said and f"{image}: is no DICOM series" in said
    assert predict(run, image, tmp_path / "m", "--format", "niftii") == 2
    assert "--format: niftii: no such format (did you mean nifti?" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()
