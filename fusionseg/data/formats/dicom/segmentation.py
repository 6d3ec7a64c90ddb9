"""DICOM-SEG as a label: the number of the segment in each voxel. highdicom reads the object."""

from __future__ import annotations

import numpy as np

from fusionseg.data.formats.dicom.headers import DicomFile, read_dataset
from fusionseg.data.formats.geometry import LPS_TO_RAS
from fusionseg.data.formats.image_file import FETCH, ImageFile, VolumeError
from fusionseg.data.formats.readers.affines import checked_geometry
from fusionseg.data.formats.readers.packages import optional_package


def read_segmentation(file: DicomFile) -> ImageFile:
    """Read a DICOM-SEG object.

    Its frames may cover a part of the image only: programs leave out frames without a segment.

    Args:
        file: its header.

    Raises:
        VolumeError: the segments overlap, are fractional, or form no regular grid; or highdicom is missing.
    """
    seg = optional_package("highdicom.seg")
    dataset = read_dataset(file.path, voxels=True)
    if dataset.get("SegmentationType") == "FRACTIONAL":
        raise VolumeError(
            "header",
            "it is a DICOM-SEG with fractions, not one label per voxel",
            "export it as a binary segmentation, or as NIfTI",
        )
    try:
        volume = seg.Segmentation.from_dataset(dataset).get_volume(combine_segments=True)
    except RuntimeError as error:  # highdicom's word for overlapping segments and for irregular frames
        overlap = "overlap" in str(error).lower()
        raise VolumeError(
            "header",
            "segments of the DICOM-SEG overlap" if overlap else f"the DICOM-SEG is no regular volume ({error})",
            "export each segment as a file of its own, or a label map with one value per voxel"
            if overlap
            else "export the segmentation on the grid of its image",
        ) from error
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise VolumeError("header", f"the DICOM-SEG cannot be read ({error})", FETCH) from error
    voxels = np.asarray(volume.array).transpose(2, 1, 0)  # slice, row, column -> column, row, slice
    affine = LPS_TO_RAS @ np.asarray(volume.affine, np.float64)[:, [2, 1, 0, 3]]
    geometry = checked_geometry(voxels.shape, affine)
    return ImageFile(voxels, geometry.affine, voxels.dtype.name, geometry.problems, partial=True)
