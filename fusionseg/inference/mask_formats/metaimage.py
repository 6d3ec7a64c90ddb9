"""Masks as MetaImage files (.mha), the format of ITK."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np

from fusionseg.data.formats.geometry import LPS_TO_RAS, voxel_sizes
from fusionseg.data.formats.image_file import VolumeError
from fusionseg.data.formats.readers import Readers
from fusionseg.data.formats.readers.packages import optional_package
from fusionseg.inference.mask_formats.mask import (
    Mask,
    OriginText,
    StoredMask,
    is_mask_type,
    voxel_digest,
)
from fusionseg.utils.files import whole_file

_ORIGIN = "MaskOrigin"


class MetaImageMasks:
    """The format MetaImage, in one compressed file. A field of the header has the origin."""

    suffix = ".mha"

    def check(self, image: Path, readers: Readers) -> None:
        """Accept every image, if the package is installed."""
        optional_package("SimpleITK")

    def files(self, target: Path) -> list[Path]:
        return [target]

    def write(self, mask: Mask, target: Path, origin: OriginText) -> None:
        sitk = optional_package("SimpleITK")
        affine = LPS_TO_RAS @ mask.affine()
        sizes = np.array(voxel_sizes(affine))
        image = sitk.GetImageFromArray(np.ascontiguousarray(mask.values.transpose(2, 1, 0)))
        image.SetSpacing(sizes.tolist())
        image.SetDirection((affine[:3, :3] / sizes).ravel().tolist())
        image.SetOrigin(affine[:3, 3].tolist())
        image.SetMetaData(_ORIGIN, origin(voxel_digest(mask.values)))
        with whole_file(target) as temporary:
            try:
                sitk.WriteImage(image, str(temporary), True)
            except RuntimeError as error:  # ITK has no error numbers
                reason = str(error).strip().splitlines()[-1].removeprefix("Reason: ")
                raise OSError(errno.ENOSPC if "No space left" in reason else errno.EIO, reason) from error

    def read(self, target: Path) -> StoredMask:
        sitk = optional_package("SimpleITK")
        try:
            image = sitk.ReadImage(str(target))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise VolumeError("unreadable", f"cannot be read as MetaImage ({reason})", "move it away") from error
        values = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
        has_origin = image.HasMetaDataKey(_ORIGIN) and is_mask_type(values.dtype)
        return StoredMask(image.GetMetaData(_ORIGIN) if has_origin else "", voxel_digest(values))
