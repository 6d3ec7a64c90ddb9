"""Masks as NIfTI files, in the geometry of their images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from fusionseg.data.formats.readers import Readers
from fusionseg.data.formats.readers.nifti import SUFFIXES, read_header, read_volume
from fusionseg.inference.mask_formats.mask import Mask, OriginText, StoredMask, is_mask_type, voxel_digest
from fusionseg.utils.files import whole_file

GEOMETRY_FIELDS = (
    *("xyzt_units", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)
"""Fields of a NIfTI header that a mask takes from its image, beside `pixdim`."""


class NiftiMasks:
    """The format NIfTI, compressed. The header field `descrip` has the origin."""

    suffix = ".nii.gz"

    def check(self, image: Path, readers: Readers) -> None:
        """Accept every image."""

    def files(self, target: Path) -> list[Path]:
        return [target]

    def write(self, mask: Mask, target: Path, origin: OriginText) -> None:
        header = mask_header(mask.image, mask.readers)
        header.set_data_dtype(mask.values.dtype)
        header["descrip"] = origin(voxel_digest(mask.values)).encode()
        kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
        image = kind(mask.values, header.get_best_affine(), header)
        with whole_file(target) as temporary:
            nib.save(image, temporary)

    def read(self, target: Path) -> StoredMask:
        volume = read_volume(target)
        text = bytes(volume.header["descrip"].item()).rstrip(b"\0").decode("latin-1")
        return StoredMask(text if is_mask_type(volume.values.dtype) else "", voxel_digest(volume.values))


def mask_header(image: Path, readers: Readers) -> Any:
    """Make the NIfTI header of a mask, which takes the geometry of the image and no other field.

    Args:
        image: the (first) file of the image. Of a NIfTI file, the mask gets the affines, their codes and the unit; of
            another file, the affine in mm.
        readers: the readers of image formats.
    """
    if not image.name.lower().endswith(SUFFIXES):
        geometry = readers.read_geometry(image)
        empty = nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), geometry.affine)
        empty.set_qform(geometry.affine, code=1)
        empty.set_sform(geometry.affine, code=1)
        empty.header.set_xyzt_units("mm")
        return empty.header
    source = read_header(image).header
    header = type(source)()
    header.set_data_dtype(np.uint8)
    for name in GEOMETRY_FIELDS:
        header[name] = source[name]
    header["pixdim"][:4] = source["pixdim"][:4]
    if header["pixdim"][0] not in (-1, 1):  # the handedness of the qform: 0 means 1, and nibabel refuses it
        header["pixdim"][0] = 1
    return header
