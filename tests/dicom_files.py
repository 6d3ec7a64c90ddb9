"""Small DICOM files for tests: series of slices, multi-frame images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    PositronEmissionTomographyImageStorage,
    generate_uid,
)

Change = Callable[[Any, int], None]
"""Edits the data set of a slice, given its index along the normal."""


def oblique(spacing: tuple[float, float, float] = (0.8, 0.9, 2.5)) -> NDArray[np.float64]:
    """A right-handed oblique affine, voxel index to mm in LPS."""
    axes, _ = np.linalg.qr(np.array([[1.0, -0.2, 0.1], [0.25, 1.1, 0.05], [-0.1, 0.05, 1.0]]))
    axes *= np.sign(np.diag(axes))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes * spacing, (-30, 12, 7)
    assert np.linalg.det(affine) > 0
    return affine


def write_series(
    folder: Path,
    volume: NDArray[Any],
    affine: NDArray[np.float64] | None = None,
    *,
    slopes: NDArray[np.float64] | None = None,
    change: Change | None = None,
    uid: str | None = None,
    name: Callable[[int], str] = lambda index: f"IM{(index * 7) % 101:04d}",
    description: str = "Thorax",
) -> list[Path]:
    """Write a series of slices.

    Args:
        folder: is made.
        volume: stored numbers, (X, Y, Z) int16.
        affine: voxel index to mm in LPS.
        slopes: a rescale slope for each slice, as in PET; None writes CT with an intercept of -1024.
        change: edits each slice before it is written.
        uid: of the series.
        name: of the file of a slice; by default in another order than the positions, and without a suffix.
        description: of the series.

    Returns:
        The files in the order of their positions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    affine = oblique() if affine is None else affine
    uid = uid or generate_uid()
    paths = []
    study, frame_of_reference = generate_uid(), generate_uid()
    for index in range(volume.shape[2]):
        dataset = _image(volume[:, :, index], PositronEmissionTomographyImageStorage if slopes is not None else None)
        dataset.SeriesInstanceUID, dataset.SeriesDescription = uid, description
        dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = study, frame_of_reference
        dataset.InstanceNumber = str((index * 3) % 7)
        dataset.ImagePositionPatient = _numbers(affine[:3, 3] + index * affine[:3, 2])
        dataset.ImageOrientationPatient, dataset.PixelSpacing = _plane(affine)
        dataset.SliceThickness = "9.9"  # is not the distance of the slices
        dataset.RescaleSlope, dataset.RescaleIntercept = ("1", "-1024") if slopes is None else (f"{slopes[index]}", "0")
        if change is not None:
            change(dataset, index)
        paths.append(folder / name(index))
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths


def write_multiframe(path: Path, volume: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write an enhanced MR image: one file with a frame for each slice, in descending order of the positions."""
    order = list(range(volume.shape[2]))[::-1]
    dataset = _image(volume[:, :, 0], EnhancedMRImageStorage)
    dataset.SeriesInstanceUID, dataset.Modality = generate_uid(), "MR"
    dataset.NumberOfFrames = str(len(order))
    dataset.PixelData = np.ascontiguousarray(volume[:, :, order].transpose(2, 1, 0)).tobytes()
    plane, measures, shared = Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient, measures.PixelSpacing = _plane(affine)
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [plane], [measures]
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for index in order:
        position, values, group = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = _numbers(affine[:3, 3] + index * affine[:3, 2])
        values.RescaleSlope, values.RescaleIntercept = "2", str(index)
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [position], [values]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.save_as(path, enforce_file_format=True)


def _image(plane: NDArray[Any], sop_class: str | None) -> FileDataset:
    """The data set of a slice, without its position; `plane` is (X, Y)."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = sop_class or CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset("slice", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Modality = "CT" if sop_class is None else "PT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Columns, dataset.Rows = plane.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.PixelData = np.ascontiguousarray(plane.T.astype("<i2")).tobytes()
    return dataset


def _plane(affine: NDArray[np.float64]) -> tuple[list[str], list[str]]:
    """ImageOrientationPatient and PixelSpacing (distance of rows first) of an affine."""
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    return _numbers((affine[:3, :2] / sizes[:2]).T.ravel()), _numbers([sizes[1], sizes[0]])


def _numbers(values: Any) -> list[str]:
    return [f"{value:.10f}"[:16] for value in values]
