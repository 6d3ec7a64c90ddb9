"""The header of a DICOM file, and the position of its slices: one slice, or the frames of a multi-frame file."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.formats.dicom.candidates import is_dicom
from fusionseg.data.formats.image_file import FETCH, VolumeError
from fusionseg.data.formats.readers.packages import optional_package

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"

VARYING = (
    *("TemporalPositionIdentifier", "EchoNumbers", "EchoTime", "InversionTime", "DiffusionBValue", "TriggerTime"),
    *("AcquisitionNumber", "ImageType", "ContentTime", "AcquisitionTime"),
)
"""Tags that tell the volumes of one series apart: phases, echoes, b-values; in the order in which they are tried."""

_TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "Modality", "SeriesInstanceUID", "SeriesDescription", "SeriesNumber"),
    *("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "BitsAllocated", "PixelRepresentation"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"),
    *("ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *VARYING,
)


@dataclass(frozen=True)
class Slice:
    """One slice of a volume: a file, or a frame of a multi-frame file.

    Args:
        path: the file.
        frame: index of the frame; None for a file with one slice.
        position: of the centre of the first pixel, in mm, in the LPS coordinates of DICOM; None if it is not stated.
        orientation: directions of the rows and of the columns, (2, 3), LPS; None if they are not stated.
        spacing: distance of rows and distance of columns in mm; None if it is not stated.
        shape: number of rows and number of columns.
        slope: factor of the stored numbers.
        intercept: added after the factor.
    """

    path: Path
    frame: int | None
    position: NDArray[np.float64] | None
    orientation: NDArray[np.float64] | None
    spacing: tuple[float, float] | None
    shape: tuple[int, int]
    slope: float
    intercept: float

    @property
    def name(self) -> str:
        """The name of the file, and the number of the frame from 1, for messages."""
        return self.path.name if self.frame is None else f"frame {self.frame + 1} of {self.path.name}"


@dataclass(frozen=True)
class DicomFile:
    """The header of a DICOM file.

    Args:
        path: the file.
        sop_class: UID of the kind of object.
        instance: UID of the object.
        modality: such as CT or MR.
        series: UID of the series.
        description: of the series; empty if there is none.
        image_type: such as ("ORIGINAL", "PRIMARY", "LOCALIZER").
        samples: numbers in a pixel; 0 for an object without pixels.
        stored_type: data type of the stored numbers.
        has_table: True if a table and no slope turns the stored numbers into values.
        slices: of the file.
        varying: the values of the tags `VARYING`.
    """

    path: Path
    sop_class: str
    instance: str
    modality: str
    series: str
    description: str
    image_type: tuple[str, ...]
    samples: int
    stored_type: str
    has_table: bool
    slices: tuple[Slice, ...]
    varying: tuple[str, ...]

    @property
    def is_localizer(self) -> bool:
        """True for a scout image, which shows the position of the slices."""
        return any(part.upper() in ("LOCALIZER", "SCOUT") for part in self.image_type)


def read_dataset(path: Path, *, voxels: bool = False) -> Any:
    """Read a DICOM file with pydicom.

    Args:
        path: the file.
        voxels: True reads the pixels and all tags; False reads the tags that this module needs.

    Raises:
        VolumeError: the file is no DICOM file, or it is damaged; or pydicom is missing.
    """
    pydicom = optional_package("pydicom")
    warnings.filterwarnings("ignore", module="pydicom")  # about odd values of tags that nobody here reads
    try:
        if not is_dicom(path):
            empty = path.stat().st_size == 0
            raise VolumeError("truncated" if empty else "header", "it is empty" if empty else "it is not DICOM", FETCH)
        if voxels:
            return pydicom.dcmread(path, force=True)
        return pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=list(_TAGS))
    except FileNotFoundError:
        raise VolumeError("missing", "there is no such file", "copy it there") from None
    except OSError as error:
        raise VolumeError("unreadable", f"{error.strerror or error}", "check the permissions and the disk") from error
    except VolumeError:
        raise
    except Exception as error:  # pydicom raises many kinds for a damaged file
        raise VolumeError("header", f"the DICOM header cannot be read ({error})", FETCH) from error


def read_header(path: Path) -> DicomFile:
    """Read the header of a DICOM file, and no pixel.

    Args:
        path: the file.

    Raises:
        VolumeError: as `read_dataset`, or if the header is incomplete.
    """
    dataset = read_dataset(path)
    try:
        return _header(path, dataset)
    except VolumeError:
        raise
    except Exception as error:  # values of a damaged header fail at their first use, in many ways
        raise VolumeError("header", f"the DICOM header cannot be used ({error})", FETCH) from error


def _header(path: Path, dataset: Any) -> DicomFile:
    if not dataset.get("SOPClassUID"):
        raise VolumeError("truncated", "the DICOM header ends before it states what the file is", FETCH)
    image_type = dataset.get("ImageType") or ()
    width = dataset.get("BitsAllocated", 16)
    signed = dataset.get("PixelRepresentation")  # floats have none
    bits = f"float{width}" if signed is None and width >= 32 else f"{'int' if signed else 'uint'}{width}"
    samples = int(dataset.get("SamplesPerPixel") or 1) if dataset.get("Rows") and dataset.get("Columns") else 0
    return DicomFile(
        path,
        str(dataset.SOPClassUID),
        str(dataset.get("SOPInstanceUID", "")),
        str(dataset.get("Modality", "")),
        str(dataset.get("SeriesInstanceUID", "")),
        str(dataset.get("SeriesDescription", "") or ""),
        (image_type,) if isinstance(image_type, str) else tuple(map(str, image_type)),
        samples,
        bits,
        bool(dataset.get("ModalityLUTSequence")),
        _slices(path, dataset) if samples else (),
        tuple(str(dataset.get(tag, "")) for tag in VARYING),
    )


def _slices(path: Path, dataset: Any) -> tuple[Slice, ...]:
    shape = int(dataset.Rows), int(dataset.Columns)
    frames = int(dataset.get("NumberOfFrames") or 1)
    groups = dataset.get("PerFrameFunctionalGroupsSequence")
    if groups is None and frames == 1:
        return (_slice(path, None, shape, [dataset]),)
    if groups is None:  # ultrasound, nuclear medicine, angiography: nothing states where the frames lie
        return tuple(_slice(path, frame, shape, []) for frame in range(frames))
    if len(groups) != frames:
        raise VolumeError("header", f"it states {frames} frames and describes {len(groups)}", FETCH)
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])
    names = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
    parts = (*names, "PixelValueTransformationSequence")
    common = [_first(item, part) for item in shared for part in parts]
    return tuple(
        _slice(path, index, shape, [*(_first(group, part) for part in parts), *common])
        for index, group in enumerate(groups)
    )


def _first(group: Any, name: str) -> Any:
    """The first item of a sequence, or an empty mapping if there is none."""
    return (group.get(name) or [{}])[0]


def _slice(path: Path, frame: int | None, shape: tuple[int, int], sources: Sequence[Any]) -> Slice:
    """Make a slice. Each entry comes from the first source that has it."""

    def entry(name: str) -> Any:
        return next((value for source in sources if (value := source.get(name)) not in (None, "")), None)

    def numbers(name: str, count: int) -> NDArray[np.float64] | None:
        value = entry(name)
        if value is None:
            return None
        array = np.asarray([float(part) for part in value])
        if array.shape != (count,) or not np.isfinite(array).all():
            raise VolumeError("header", f"{name} is {value} (expected {count} numbers)", FETCH)
        return array

    orientation = numbers("ImageOrientationPatient", 6)
    spacing = numbers("PixelSpacing", 2)
    slope, intercept = entry("RescaleSlope"), entry("RescaleIntercept")
    return Slice(
        path,
        frame,
        numbers("ImagePositionPatient", 3),
        None if orientation is None else orientation.reshape(2, 3),
        None if spacing is None else (float(spacing[0]), float(spacing[1])),
        shape,
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
    )
