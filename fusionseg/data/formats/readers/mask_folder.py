"""The reader of a folder of masks, one NIfTI file for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fusionseg.config.registry import readers
from fusionseg.data.formats.image_file import FETCH, FileGeometry, ImageFile, VolumeError
from fusionseg.data.formats.mask_folder import MaskFolder, mask_files, mask_name
from fusionseg.data.formats.readers.nifti import NiftiReader
from fusionseg.utils.errors import some_of

SAME_GRID_MM = 1e-3
"""Largest difference of two affines of masks that one program wrote on one grid."""


@readers.register("mask_folder")
class MaskFolderReader:
    """The built-in reader of a `MaskFolder`: the masks become one label, with the value of its mask in each voxel."""

    suffixes = ()

    def reads_folder(self, folder: Path) -> bool:
        """Test that a folder is a label: the layout of the data set has found its masks.

        Args:
            folder: any folder.
        """
        return isinstance(folder, MaskFolder)

    def is_label(self, path: Path) -> bool:
        """Test that a path is a label: a folder of masks is no image.

        Args:
            path: any path.
        """
        return isinstance(path, MaskFolder)

    def files(self, path: Path) -> list[Path]:
        """The masks of a folder, sorted by name.

        Args:
            path: a `MaskFolder`.
        """
        return mask_files(path)

    def read(self, path: Path) -> ImageFile:
        """Read the masks, one after the other. A voxel is inside a mask where it is not 0.

        Args:
            path: a `MaskFolder`.

        Raises:
            VolumeError: a mask is missing, unknown or damaged, lies on another grid, holds several values, or overlaps
                another one.
        """
        assert isinstance(path, MaskFolder)
        masks = {mask_name(file): file for file in mask_files(path)}
        _check_names(masks, path)
        label = first = None
        owners: dict[int, str] = {}
        for name, value in path.values.items():
            mask = _read_mask(masks[name])
            if label is None or first is None:
                first = mask
                label = np.zeros(mask.voxels.shape, np.min_scalar_type(max(path.values.values())))
            _check_grid(mask, first, masks[name])
            inside = mask.voxels != 0
            taken = label[inside]
            if taken.any():
                other = owners[int(taken[taken != 0].min())]
                raise VolumeError(
                    "label-value",
                    f"{np.count_nonzero(taken)} voxels are in {masks[name].name} and in another mask, such as {other}"
                    " (expected one class for each voxel)",
                    "correct the masks; for structures that overlap write one label file for a case, and state"
                    " data.regions",
                )
            label[inside] = value
            owners[value] = masks[name].name
        assert label is not None and first is not None
        return ImageFile(label, first.affine, f"{len(masks)} masks", first.problems)

    def read_geometry(self, path: Path) -> FileGeometry:
        """Read the header of the first mask.

        Args:
            path: a `MaskFolder`.

        Raises:
            VolumeError: there is no mask, or its header is damaged.
        """
        files = mask_files(path)
        if not files:
            raise VolumeError("missing", "the folder holds no mask", FETCH)
        return NiftiReader().read_geometry(files[0])


def _check_names(masks: dict[str, Path], folder: MaskFolder) -> None:
    """Refuse a case that lacks the mask of a class: its voxels may be absent, or may not be annotated."""
    if missing := [name for name in folder.values if name not in masks]:
        raise VolumeError(
            "missing",
            f"lacks the mask of {some_of(missing)}, which other cases have",
            "add an empty mask if the case has no voxel of it, or take the case out of the data set",
        )
    if unknown := [name for name in masks if name not in folder.values]:
        raise VolumeError("label-value", f"holds masks that the data set does not name: {some_of(unknown)}", FETCH)


def _read_mask(file: Path) -> ImageFile:
    try:
        mask = NiftiReader().read(file)
    except VolumeError as error:
        raise VolumeError(error.code, f"{file.name}: {error.message}", error.remedy) from error
    low, high = mask.voxels.min(), mask.voxels.max()
    if not (low in (0, high) and np.isin(mask.voxels, (0, high)).all()):
        raise VolumeError(
            "label-value",
            f"{file.name} holds several values besides 0 (expected a mask: 0 and one other value)",
            "write a mask for each class",
        )
    return mask


def _check_grid(mask: ImageFile, first: ImageFile, file: Path) -> None:
    same = mask.voxels.shape == first.voxels.shape
    if not same or not np.allclose(mask.affine, first.affine, rtol=0, atol=SAME_GRID_MM):
        raise VolumeError(
            "label-affine" if same else "label-shape",
            f"{file.name} has the shape {'x'.join(map(str, mask.voxels.shape))} or the affine of another grid than the"
            f" first mask ({'x'.join(map(str, first.voxels.shape))})",
            "resample the masks of a case to one grid",
        )
