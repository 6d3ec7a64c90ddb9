"""Masks as DICOM-SEG objects, made by highdicom: one segment for each class, with references to the source slices."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.formats.dicom.stack import slice_files
from fusionseg.data.formats.geometry import LPS_TO_RAS
from fusionseg.data.formats.image_file import VolumeError
from fusionseg.data.formats.readers import Readers
from fusionseg.data.formats.readers.packages import optional_package
from fusionseg.inference.mask_formats.mask import Mask, OriginText, StoredMask, short_hash
from fusionseg.utils.files import whole_file
from fusionseg.utils.version import __version__

_REQUIRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
"""Attributes of the slices without which a segmentation cannot refer to them. Their values cannot be made up."""
_ONE_VALUE = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
"""Attributes that each DICOM object has, empty if they are unknown. Anonymising programs remove them."""
_POSITION_VOXELS = 0.01
_OTHER_FORMAT = "choose --format nifti"
_MAX_LABEL = 64  # characters of a DICOM value of the type LO


class DicomSegMasks:
    """The format DICOM-SEG. `SoftwareVersions` has the origin.

    Segments are numbered 1, 2, ... in the order of the values, as the standard requires. The description of a segment
    has the value, if it is another one.
    """

    suffix = ".dcm"

    def check(self, image: Path, readers: Readers) -> None:
        """Accept a DICOM series with one file for each slice, whose slices can be referred to."""
        pydicom = optional_package("pydicom")
        optional_package("highdicom")
        if not image.is_dir():
            raise VolumeError(
                "format", "is no DICOM series, and a DICOM-SEG refers to the slices of one", _OTHER_FORMAT
            )
        tags = [*_REQUIRED, "NumberOfFrames"]
        files = slice_files(image, readers.series)
        slices = [pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags) for file in files]
        if len(slices) == 1 and int(slices[0].get("NumberOfFrames") or 1) > 1:
            raise VolumeError(
                "format", "is a multi-frame file, for which no DICOM-SEG can be written here", _OTHER_FORMAT
            )
        if missing := [name for name in _REQUIRED if not all(one.get(name) for one in slices)]:
            raise VolumeError(
                "format", f"its slices lack {', '.join(missing)}, which a DICOM-SEG refers to", _OTHER_FORMAT
            )
        if several := [name for name in _ONE_VALUE if len({one.get(name) for one in slices}) > 1]:
            raise VolumeError(
                "format", f"its slices have several values of {', '.join(several)}, and a DICOM-SEG one", _OTHER_FORMAT
            )

    def files(self, target: Path) -> list[Path]:
        return [target]

    def write(self, mask: Mask, target: Path, origin: OriginText) -> None:
        optional_package("highdicom")
        slices = _read_slices(mask.image, mask.readers)
        frames = _frames(mask, slices)
        content = io.BytesIO()  # pydicom hides the reason of a failed write in a long text
        try:
            with warnings.catch_warnings():  # highdicom warns about the names of patients
                warnings.simplefilter("ignore")
                segmentation = _segmentation(slices, frames, mask.foreground)
            if not all(name.isascii() for name in mask.names.values()):
                segmentation.SpecificCharacterSet = "ISO_IR 192"  # UTF-8
            segmentation.SoftwareVersions = _as_versions(origin(_digest(segmentation)))
            segmentation.save_as(content)
        except (ValueError, AttributeError, TypeError, KeyError) as error:  # of highdicom, about odd source slices
            raise VolumeError("format", f"no DICOM-SEG can be made of its slices ({error})", _OTHER_FORMAT) from error
        with whole_file(target) as temporary:
            temporary.write_bytes(content.getbuffer())

    def read(self, target: Path) -> StoredMask:
        pydicom = optional_package("pydicom")
        try:
            dataset = pydicom.dcmread(target)
            versions = dataset.get("SoftwareVersions") or []
            values = [versions] if isinstance(versions, str) else list(versions)
            return StoredMask(" ".join(values[1:]), _digest(dataset))
        except (OSError, ValueError, AttributeError, KeyError, EOFError, pydicom.errors.InvalidDicomError) as error:
            raise VolumeError("unreadable", f"cannot be read as DICOM-SEG ({error})", "move it away") from error


def _read_slices(folder: Path, readers: Readers) -> list[Any]:
    """Read the headers of the slices of a series, with empty values for attributes that may be empty."""
    pydicom = optional_package("pydicom")
    slices = [pydicom.dcmread(file, stop_before_pixels=True) for file in slice_files(folder, readers.series)]
    for dataset in slices:
        for name in _MAY_BE_EMPTY:
            if name not in dataset:
                setattr(dataset, name, "")
    return slices


def _frames(mask: Mask, slices: Sequence[Any]) -> NDArray[Any]:
    """The mask of each slice, (slices, rows, columns), found by the slice's position in space.

    Raises:
        VolumeError: a slice does not lie on the grid of the mask.
    """
    to_voxel = np.linalg.inv(LPS_TO_RAS @ mask.affine())
    rows, columns = int(slices[0].Rows), int(slices[0].Columns)
    frames = np.zeros((len(slices), rows, columns), mask.values.dtype)
    for number, dataset in enumerate(slices):
        corner = np.array([float(v) for v in dataset.ImagePositionPatient])
        along_row, along_column = np.array([float(v) for v in dataset.ImageOrientationPatient]).reshape(2, 3)
        row_mm, column_mm = (float(v) for v in dataset.PixelSpacing)  # the distance of rows, then that of columns
        last = corner + (columns - 1) * column_mm * along_row + (rows - 1) * row_mm * along_column
        first_voxel, last_voxel = (to_voxel[:3, :3] @ point + to_voxel[:3, 3] for point in (corner, last))
        k = round(float(first_voxel[2]))
        expected = (np.array([0, 0, k]), np.array([columns - 1, rows - 1, k]))
        distance = max(np.abs(first_voxel - expected[0]).max(), np.abs(last_voxel - expected[1]).max())
        if distance > _POSITION_VOXELS or not 0 <= k < mask.values.shape[2]:
            raise VolumeError(
                "format", f"its slice {Path(dataset.filename).name} is not on the grid of the mask", _OTHER_FORMAT
            )
        frames[number] = mask.values[:, :, k].T
    return frames


def _segmentation(slices: Sequence[Any], frames: NDArray[Any], names: dict[int, str]) -> Any:
    """Make the DICOM-SEG object.

    Args:
        slices: headers of the source slices.
        frames: the mask of each slice, (slices, rows, columns).
        names: name of each foreground value.
    """
    highdicom = optional_package("highdicom")
    codes = optional_package("pydicom.sr.codedict").codes
    seg = highdicom.seg
    algorithm = highdicom.AlgorithmIdentificationSequence("fusionseg", codes.DCM.ArtificialIntelligence, __version__)
    descriptions = []
    numbers = np.zeros(max(names) + 1, np.uint16)
    for number, (value, name) in enumerate(names.items(), start=1):
        numbers[value] = number
        # The names of a data set have no codes. Tissue is the general code, and is also the default of 3D Slicer.
        description = seg.SegmentDescription(
            number,
            " ".join(name.split())[:_MAX_LABEL],
            codes.SCT.Tissue,
            codes.SCT.Tissue,
            seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        if value != number:
            description.SegmentDescription = f"value {value}"
        descriptions.append(description)
    # Frames without a segment are left out. An empty mask needs a frame all the same: those of its first slice.
    stored = len(slices) if frames.any() else 1
    return seg.Segmentation(
        source_images=list(slices[:stored]),
        pixel_array=numbers[frames[:stored]],
        omit_empty_frames=stored > 1,
        segmentation_type=seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=highdicom.UID(),
        series_number=9000,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="fusionseg",
        manufacturer_model_name="fusionseg",
        software_versions=__version__,
        device_serial_number="0",
        series_description="Segmentation by fusionseg",
        content_description="Segmentation",
    )


def _as_versions(origin: str) -> list[str]:
    """The version of this program, and the origin in two values: each holds 64 characters."""
    words = origin.split(" ")
    return [f"fusionseg {__version__}", " ".join(words[:3]), " ".join(words[3:])]


def _digest(dataset: Any) -> str:
    """A hash of the segments, the positions and the pixels of a DICOM-SEG object."""
    shared = dataset.SharedFunctionalGroupsSequence[0]

    def attributes(frame: Any, group: str) -> Any:
        """A functional group of a frame. One that is the same for all frames is stored once."""
        return (frame if group in frame else shared)[group].value[0]

    frames = [
        (
            int(attributes(frame, "SegmentIdentificationSequence").ReferencedSegmentNumber),
            [float(v) for v in attributes(frame, "PlanePositionSequence").ImagePositionPatient],
        )
        for frame in dataset.PerFrameFunctionalGroupsSequence
    ]
    segments = [(int(one.SegmentNumber), str(one.SegmentLabel)) for one in dataset.SegmentSequence]
    shape = (int(dataset.Rows), int(dataset.Columns))
    return short_hash(repr((shape, segments, frames)).encode() + bytes(dataset.PixelData).rstrip(b"\0"))
