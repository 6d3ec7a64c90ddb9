"""DICOM: series as an independent program reads them, and one message for each fault of a folder."""

from __future__ import annotations

import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import preparing
import pydicom
import pytest
import SimpleITK
from dicom_files import oblique, write_multiframe, write_series
from numpy.typing import NDArray
from pydicom.uid import ComprehensiveSRStorage, JPEG2000Lossless, RLELossless, RTStructureSetStorage, generate_uid

from fusionseg.config import RunConfig
from fusionseg.data.formats.case_reader import read_image, read_label
from fusionseg.data.formats.dicom.stack import slice_files
from fusionseg.data.formats.geometry import LPS_TO_RAS, Grid
from fusionseg.data.formats.image_file import VolumeError
from fusionseg.data.formats.problems import CaseError
from fusionseg.data.formats.readers import Readers
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.data.preprocessing.store import settings_key

SHAPE = (7, 6, 5)
READERS = Readers()


def noise(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(0, 2000, shape, np.int16)


def by_simpleitk(folder: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Voxels and RAS+ affine of a series, read by ITK and GDCM."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), LPS_TO_RAS @ affine


def refused(path: Path) -> VolumeError:
    """The error of a path; header pass and decoding refuse the same."""
    with pytest.raises(VolumeError) as caught:
        READERS.read(path)
    return caught.value


# -- values and geometry -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pet", [False, True], ids=["CT", "PET"])
def test_a_series_is_read_as_itk_reads_it(tmp_path: Path, pet: bool) -> None:
    slopes = np.array([0.5, 2.0, 0.125, 1.5, 3.0]) if pet else None
    write_series(tmp_path / "s", noise(), slopes=slopes)
    content, geometry = READERS.read(tmp_path / "s"), READERS.read_geometry(tmp_path / "s")
    expected, affine = by_simpleitk(tmp_path / "s")
    np.testing.assert_array_equal(content.voxels, noise() * slopes if slopes is not None else noise() - 1024)
    np.testing.assert_array_equal(content.voxels, expected)
    np.testing.assert_allclose(content.affine, affine, atol=1e-5)
    np.testing.assert_allclose(content.affine, LPS_TO_RAS @ oblique(), atol=1e-5)
    np.testing.assert_array_equal(geometry.affine, content.affine)
    assert geometry.shape == content.voxels.shape == SHAPE and content.problems == geometry.problems == ()
    assert READERS.reads_folder(tmp_path / "s") and READERS.stem(tmp_path / "s") == "s"
    assert [path.name for path in slice_files(tmp_path / "s")] == [f"IM{(i * 7) % 101:04d}" for i in range(5)]


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless], ids=["JPEG 2000", "RLE"])
def test_compressed_pixels_are_the_same_voxels(tmp_path: Path, syntax: Any) -> None:
    volume = noise(shape=(48, 48, 3))
    for path in write_series(tmp_path / "s", volume):
        dataset = pydicom.dcmread(path)
        dataset.compress(syntax)
        dataset.save_as(path)
    np.testing.assert_array_equal(READERS.read(tmp_path / "s").voxels, volume - 1024)


def test_a_multiframe_file_is_one_image(tmp_path: Path) -> None:
    volume = noise() % 1000
    write_multiframe(tmp_path / "scan.dcm", volume, oblique())
    content = READERS.read(tmp_path / "scan.dcm")
    np.testing.assert_array_equal(content.voxels, 2 * volume + np.arange(5))
    np.testing.assert_allclose(content.affine, LPS_TO_RAS @ oblique(), atol=1e-5)
    assert READERS.reads_folder(tmp_path) and READERS.image_files(tmp_path) == []
    shutil.copy(tmp_path / "scan.dcm", tmp_path / "other.dcm")  # a folder of images, as imagesTr is one
    assert not READERS.reads_folder(tmp_path) and len(READERS.image_files(tmp_path)) == 2


def test_a_tilted_gantry_keeps_its_exact_grid_and_is_a_warning(tmp_path: Path) -> None:
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    affine[1, 2] = 3 * np.tan(np.radians(15))
    write_series(tmp_path / "s", noise(), affine)
    content = READERS.read(tmp_path / "s")
    np.testing.assert_allclose(content.affine, LPS_TO_RAS @ affine, atol=1e-5)
    (problem,) = content.problems
    assert (problem.severity, problem.code) == ("warning", "shear") and "15 degrees" in problem.message


def test_other_files_scouts_and_reports_beside_a_series_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "case_01.2"
    write_series(folder / "STUDY/SERIES1", noise())  # one folder for each series, as hospitals export
    for name in ("DICOMDIR", "readme.txt", "label.nii.gz", ".hidden", "Thumbs.db"):
        (folder / name).write_bytes(b"no DICOM")

    def scout(dataset: Any, index: int) -> None:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    def report(dataset: Any, index: int) -> None:
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = ComprehensiveSRStorage
        del dataset.PixelData, dataset.Rows

    write_series(folder / "STUDY/SCOUT", noise(1)[:, :, :1], change=scout, description="Topogram")
    write_series(folder / "STUDY/SR", noise(1)[:, :, :1], change=report)
    content = READERS.read(folder)
    np.testing.assert_array_equal(content.voxels, noise() - 1024)
    (problem,) = content.problems
    assert problem.code == "series-left-out" and "'Topogram' (1 slice, " in problem.message
    assert not READERS.reads_folder(folder) and READERS.stem(folder) == "case_01.2"


# -- faults of a folder: one message each --------------------------------------------------------------------


def test_two_series_are_named(tmp_path: Path) -> None:
    write_series(tmp_path / "s/a", noise(), uid="1.2.3.11111111", description="Lung 1.0")
    write_series(tmp_path / "s/b", noise(1), uid="1.2.3.22222222", description="Body 3.0")
    error = refused(tmp_path / "s")
    assert error.code == "series" and "holds 2 series" in error.message
    assert "'Lung 1.0' (5 slices, UID ...11111111, in a)" in error.message
    assert "'Body 3.0' (5 slices, UID ...22222222, in b)" in error.message and "data.series" in error.remedy
    assert not READERS.reads_folder(tmp_path / "s")


def test_folders_within_the_folder_of_a_series_are_no_part_of_it(tmp_path: Path) -> None:
    own = write_series(tmp_path / "s", noise())
    write_series(tmp_path / "s/PET", noise(1))
    np.testing.assert_array_equal(READERS.read(tmp_path / "s").voxels, noise() - 1024)
    assert READERS.files(tmp_path / "s") == sorted(own)


def test_slices_with_a_suffix_are_no_images_of_their_own(tmp_path: Path) -> None:
    def scout(dataset: Any, index: int) -> None:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    def name(index: int) -> str:
        return f"IM{index}.dcm"

    write_series(tmp_path / "scout", noise()[:, :, :1], change=scout, name=name)
    write_series(tmp_path / "CT", noise(), name=name, description="venous")
    assert READERS.image_files(tmp_path / "scout") == READERS.image_files(tmp_path / "CT") == []
    assert Readers(series="arterial").image_files(tmp_path / "CT") == []
    write_multiframe(tmp_path / "MR.dcm", noise(), oblique())
    write_multiframe(tmp_path / "MR2.dcm", noise(), oblique())
    assert READERS.image_files(tmp_path) == [tmp_path / "MR.dcm", tmp_path / "MR2.dcm"]


@pytest.mark.parametrize("wanted", ["lung*", "11111111", "CT | Lung ?.0"])
def test_one_of_several_series_is_chosen(tmp_path: Path, wanted: str) -> None:
    write_series(tmp_path / "s", noise(), uid="1.2.3.11111111", description="Lung 1.0")
    write_series(tmp_path / "s", noise(1), uid="1.2.3.22222222", description="Body 3.0", name=lambda index: f"B{index}")
    readers = Readers(series=wanted)
    np.testing.assert_array_equal(readers.read(tmp_path / "s").voxels, noise() - 1024)
    assert pickle.loads(pickle.dumps(readers)).reads_folder(tmp_path / "s")
    for path in (tmp_path / "s").glob("IM*"):
        path.unlink()
    with pytest.raises(VolumeError, match=r"no series matches data\.series='.*': there is 'Body 3.0' \(5 slices"):
        readers.read(tmp_path / "s")
    assert not readers.reads_folder(tmp_path / "s")


def test_the_chosen_series_is_prepared_and_belongs_to_the_settings_of_the_store(
    tmp_path: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    write_series(tmp_path / "p1", noise(), description="Lung 1.0")
    write_series(tmp_path / "p1", noise(1), description="Body 3.0", name=lambda index: f"B{index}")
    (tmp_path / "list.json").write_text('{"training": [{"image": "p1"}]}')
    settings = set()
    for wanted, expected in (("Lung*", noise()), ("Body*", noise(1))):
        config = tiny_config(tmp_path / "list.json", tmp_path / "runs", data={"series": wanted, "folds": 1})
        assert preparing.run(config).failed == {}
        image = preparing.opened(config).image("p1")[0]
        assert np.corrcoef(image[::-1, ::-1].ravel(), expected.ravel())[0, 1] > 0.99
        settings.add(settings_key(config.data))
    plain = tiny_config(tmp_path / "list.json", tmp_path / "runs", data={"folds": 1})
    (reason,) = preparing.run(plain).failed.values()
    assert "holds 2 series" in reason and len({*settings, settings_key(plain.data)}) == 3


def test_a_missing_slice_is_named_with_its_place(tmp_path: Path) -> None:
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[2, 3] = -100
    write_series(tmp_path / "s", noise(), affine)[2].unlink()
    error = refused(tmp_path / "s")
    assert error.code == "slices" and "1 slice is missing: the slices are 2 mm apart" in error.message
    assert "4 mm between IM0007 (at -98 mm along the normal) and IM0021 (at -94 mm)" in error.message


def copied(folder: Path) -> None:
    """Copy a slice, as a file manager names copies."""
    shutil.copy(folder / "IM0007", folder / "IM0007 (1)")


def truncated(folder: Path) -> None:
    path = folder / "IM0007"
    path.write_bytes(path.read_bytes()[:-9])


def emptied(folder: Path) -> None:
    (folder / "IM0007").write_bytes(b"")


def cut_in_header(folder: Path) -> None:
    path = folder / "IM0007"
    path.write_bytes(path.read_bytes()[:300])


def another_file(folder: Path) -> None:
    (folder / "IM0099").write_bytes(b"some other file" * 20)


@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        (copied, "positions", "the same slice is there twice"),
        (truncated, "truncated", "the pixels of IM0007 cannot be decoded"),
        (emptied, "truncated", "1 file cannot be read as DICOM: IM0007 .it is empty."),
        (cut_in_header, "truncated", "1 file cannot be read as DICOM: IM0007 .the DICOM header ends"),
        (another_file, "header", "1 file cannot be read as DICOM: IM0099 .it is not DICOM."),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, damage: Callable[[Path], None], code: str, message: str) -> None:
    write_series(tmp_path / "s", noise())
    damage(tmp_path / "s")
    error = refused(tmp_path / "s")
    assert error.code == code
    assert re.search(message, str(error))


def on_third(**values: Any) -> Callable[[Any, int], None]:
    def change(dataset: Any, index: int) -> None:
        for tag, value in values.items() if index == 2 else ():
            setattr(dataset, tag, value)

    return change


def on_all(**values: Any) -> Callable[[Any, int], None]:
    def change(dataset: Any, index: int) -> None:
        for tag, value in values.items():
            delattr(dataset, tag) if value is None else setattr(dataset, tag, value)

    return change


def uneven(dataset: Any, index: int) -> None:
    dataset.ImagePositionPatient = [0, 0, index + 0.3 * index * index]


def jumping(dataset: Any, index: int) -> None:
    dataset.ImagePositionPatient = [4 if index == 2 else 0, 0, 2 * index]


def echoes(dataset: Any, index: int) -> None:
    dataset.EchoTime = str(index % 2)
    dataset.ImagePositionPatient = [0, 0, index // 2]


def small(dataset: Any, index: int) -> None:
    if index == 2:
        dataset.Rows, dataset.PixelData = 3, dataset.PixelData[: 3 * 7 * 2]


STRAIGHT = np.diag([1.0, 1.0, 2.0, 1.0])
FAULTS: dict[str, tuple[Callable[[Any, int], None], str, str]] = {
    "uneven": (uneven, "slices", r"distances of the slices vary from 1\.3 to 3\.7 mm"),
    "beside the line": (jumping, "affine", r"IM0014 lies 4 mm beside the line"),
    "echoes": (
        echoes,
        "positions",
        r"6 slices lie at 3 positions: several volumes .*differ in EchoTime",
    ),
    "turned": (on_third(ImageOrientationPatient=[0, 1, 0, 0, 0, 1]), "affine", r"in orientation: 5 of .*IM0014"),
    "no unit vectors": (on_all(ImageOrientationPatient=[2, 0, 0, 0, 1, 0]), "affine", r"expected two unit vectors"),
    "size": (small, "dimensions", r"differ in size: 5 of 7x6, 1 of 7x3 \(such as IM0014\)"),
    "pixel spacing": (on_third(PixelSpacing=[2, 2]), "spacing", r"differ in pixel spacing: 5 of 1x1 mm, 1 of 2x2 mm"),
    "no pixel spacing": (on_all(PixelSpacing=None), "spacing", r"PixelSpacing of IM0000 is missing"),
    "no position": (on_all(ImagePositionPatient=None), "affine", r"states no position .*modality CT"),
    "no numbers": (on_third(ImagePositionPatient=[1, 2]), "header", r"ImagePositionPatient is .*expected 3 numbers"),
    "no pixels": (on_third(PixelData=b""), "truncated|no-pixels|corrupt", r"IM0014"),
    "colour": (on_all(SamplesPerPixel=3, PhotometricInterpretation="RGB"), "header", r"are in colour"),
    "mosaic": (on_all(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "header", r"Siemens mosaic.*dcm2niix"),
    "contours": (on_all(SOPClassUID=RTStructureSetStorage, Rows=None), "header", r"RTSTRUCT.*plastimatch"),
    "no image": (on_all(SOPClassUID=ComprehensiveSRStorage, Rows=None), "no-pixels", r"no pixels in 6 DICOM files"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_series_have_one_message_each(tmp_path: Path, fault: str) -> None:
    change, code, message = FAULTS[fault]
    write_series(tmp_path / "s", noise(shape=(7, 6, 6)), STRAIGHT, change=change)
    error = refused(tmp_path / "s")
    assert error.code in code.split("|")
    assert re.search(message, str(error))


def test_pixels_without_a_decoder_name_their_compression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_series(tmp_path / "s", noise(shape=(48, 48, 3)))
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.compress(JPEG2000Lossless)
        dataset.save_as(path)
    monkeypatch.setattr(pydicom.pixels.get_decoder(JPEG2000Lossless), "_available", {})
    error = refused(tmp_path / "s")
    assert error.code == "compression" and "JPEG 2000 Image Compression (Lossless Only)" in error.message
    assert error.remedy == "pip install 'fusionseg[formats]'"
    for path in paths:  # a video: no package decodes it as a volume
        content = path.read_bytes().replace(b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.92")
        path.write_bytes(content)
    assert "which pydicom cannot decode" in refused(tmp_path / "s").message


def test_a_single_slice_is_no_volume(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", noise(), name=lambda index: f"{index}.dcm")
    error = refused(paths[0])
    assert error.code == "dimensions" and str(tmp_path / "s") in error.remedy
    assert READERS.image_files(tmp_path / "s") == []
    for path in paths[1:]:
        path.unlink()
    assert "holds a single slice" in refused(tmp_path / "s").message
    paths[0].unlink()
    assert "holds no DICOM file" in refused(tmp_path / "s").message


# -- labels --------------------------------------------------------------------------------------------------


def write_segmentation(path: Path, folder: Path, masks: list[NDArray[np.bool_]]) -> None:
    """Write a DICOM-SEG of the series in a folder; one mask (X, Y, Z) for each segment. highdicom leaves out empty
    frames."""
    import highdicom
    from pydicom.sr.codedict import codes

    sources = [pydicom.dcmread(file) for file in slice_files(folder)]
    for source in sources:  # attributes that highdicom copies
        source.PatientID, source.PatientName, source.StudyInstanceUID = "p", "a^b", "1.2.3"
        source.FrameOfReferenceUID, source.StudyID, source.AccessionNumber = "1.2.4", "", ""
        source.PatientBirthDate, source.PatientSex, source.StudyDate, source.StudyTime = "", "", "", ""
        source.ReferringPhysicianName = ""
    descriptions = [
        highdicom.seg.SegmentDescription(
            number, f"part {number}", codes.SCT.Organ, codes.SCT.Liver, highdicom.seg.SegmentAlgorithmTypeValues.MANUAL
        )
        for number in range(1, len(masks) + 1)
    ]
    pixels = np.stack([mask.transpose(2, 1, 0) for mask in masks], -1)
    seg = highdicom.seg.Segmentation(
        sources, pixels, "BINARY", descriptions, generate_uid(), 1, generate_uid(), 1, "m", "m", "1", "1"
    )
    seg.save_as(path)


def test_a_dicom_segmentation_is_a_label_on_the_grid_of_its_image(tmp_path: Path) -> None:
    write_series(tmp_path / "image", noise())
    label = np.zeros(SHAPE, np.uint8)
    label[1:3, 2:5, 1:4], label[5, 1, 2] = 1, 2
    write_segmentation(tmp_path / "seg.dcm", tmp_path / "image", [label == 1, label == 2])
    assert READERS.read(tmp_path / "seg.dcm").voxels.shape == (7, 6, 3)  # without the empty slices
    image = read_image([tmp_path / "image"], 1)
    np.testing.assert_array_equal(read_label(tmp_path / "seg.dcm", image.grid, LabelScheme.of_names("012")), label)
    shifted = image.grid.affine.copy()
    shifted[:3, 3] += 0.5 * shifted[:3, 0]
    with pytest.raises(CaseError, match=r"differ in shape"):
        read_label(tmp_path / "seg.dcm", Grid(SHAPE, shifted), LabelScheme.of_names("012"))
    write_segmentation(tmp_path / "overlap.dcm", tmp_path / "image", [label == 1, label > 0])
    assert "overlap" in refused(tmp_path / "overlap.dcm").message


def test_pixels_that_are_fractions_stay_fractions(tmp_path: Path) -> None:
    """As in parametric maps: nothing is rounded to integers."""
    values = np.random.default_rng(0).random((5, 4, 3)).astype(np.float32)

    def fractions(one: Any, index: int) -> None:
        del one.PixelData
        one.FloatPixelData = np.ascontiguousarray(values[:, :, index].T).tobytes()
        one.BitsAllocated, one.RescaleIntercept = 32, "0"

    write_series(tmp_path / "map", np.zeros(values.shape, np.int16), change=fractions)
    found = Readers().read(tmp_path / "map").voxels
    assert found.dtype == np.float32 and np.array_equal(found, values)
