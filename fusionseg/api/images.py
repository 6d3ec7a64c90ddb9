"""Images in the forms that a caller of the API gives: an array with its voxel sizes, or files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fusionseg.utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fusionseg.data.formats.case_reader import Image

ArrayLike: TypeAlias = "NDArray[Any] | Any"
"""A numpy array, or an object that numpy converts to one: a torch tensor on the CPU, `dataobj` of a nibabel image."""
Images: TypeAlias = "ArrayLike | str | Path | Sequence[str | Path]"


def is_array(image: object) -> bool:
    """Tell whether an image is an array, and not a path or several paths."""
    return hasattr(image, "__array__")


def image_of(image: Images, spacing: Sequence[float] | None, affine: ArrayLike | None) -> Image | list[Path]:
    """Convert an image to the form that the predictor takes: in memory, or as one file for each channel.

    Args:
        image: see `fusionseg.predict`.
        spacing: for an array: voxel sizes in mm along X, Y, Z.
        affine: for an array, instead of `spacing`: 4x4, from voxel index to mm in RAS.

    Raises:
        UserError: an argument is wrong, is missing, or does not suit the image.
        CaseError: the array cannot be segmented.
    """
    if is_array(image):
        import numpy as np

        from fusionseg.data.formats.case_reader import image_of_array

        return image_of_array(np.asarray(image), _affine(spacing, affine))
    if spacing is not None or affine is not None:
        raise UserError("spacing, affine: are for arrays; a file has its own: remove them")
    if isinstance(image, (str, Path)):
        paths = [Path(image)]
        if paths[0].is_dir():
            raise UserError(f"{image}: is a folder (expected an image file, or an array); for a folder, set output")
    elif isinstance(image, Sequence) and image and all(isinstance(path, (str, Path)) for path in image):
        paths = [Path(path) for path in image]
    else:
        raise UserError(f"image: expected an array, a path or paths, got {type(image).__name__}")
    return paths


def _affine(spacing: Sequence[float] | None, affine: ArrayLike | None) -> NDArray[np.float64]:
    """The affine (4, 4) of an array, from exactly one of its voxel sizes and its affine."""
    import numpy as np

    if (spacing is None) == (affine is None):
        raise UserError(
            "spacing: an array needs its voxel sizes in mm, spacing=(x, y, z), or else affine=, its 4x4 matrix"
        )
    if affine is not None:
        return np.asarray(affine, np.float64)
    sizes = np.asarray(spacing, np.float64)
    if sizes.shape != (3,) or not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise UserError(f"spacing: expected three sizes in mm above 0, along X, Y, Z, got {spacing}")
    return np.diag([*sizes, 1.0])
