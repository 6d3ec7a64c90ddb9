"""The file format of a mask: one by name, or that of its image."""

from __future__ import annotations

from pathlib import Path

from fusionseg.data.formats.dicom.folder import holds_dicom
from fusionseg.inference.mask_formats.dicom_seg import DicomSegMasks
from fusionseg.inference.mask_formats.mask import MaskFormat
from fusionseg.inference.mask_formats.metaimage import MetaImageMasks
from fusionseg.inference.mask_formats.nifti import NiftiMasks
from fusionseg.inference.mask_formats.nrrd import NrrdMasks
from fusionseg.inference.mask_formats.numpy_array import NumpyMasks

INPUT = "input"
FORMATS: dict[str, MaskFormat] = {
    "nifti": NiftiMasks(),
    "nrrd": NrrdMasks(),
    "mha": MetaImageMasks(),
    "npy": NumpyMasks(),
    "dicom-seg": DicomSegMasks(),
}
CHOICES = (*FORMATS, INPUT)
"""Names of the formats, and `input` for that of each image."""
_OF_IMAGES = {".nrrd": "nrrd", ".nhdr": "nrrd", ".mha": "mha", ".mhd": "mha", ".npy": "npy", ".dcm": "dicom-seg"}


def choose_format(name: str, image: Path) -> MaskFormat:
    """Choose the format of a mask.

    Args:
        name: one of `CHOICES`. `input` is DICOM-SEG for a DICOM series, and NIfTI for images of a reader of the user's.
        image: the (first) file of the image, or the folder of its DICOM series.
    """
    if name != INPUT:
        return FORMATS[name]
    if image.is_dir():
        return FORMATS["dicom-seg" if holds_dicom(image) else "nifti"]
    return FORMATS[_OF_IMAGES.get(image.suffix.lower(), "nifti")]
