"""Images in the forms that a caller of the API gives: an array with its voxel sizes, or files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fusionseg.utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fusionseg.data.formats.case_reader import Image
    from fusionseg.inference.predictor import Predictor

ArrayLike: TypeAlias = "NDArray[Any] | Any"
"""A numpy array, or an object that numpy converts to one: a torch tensor on the CPU, `dataobj` of a nibabel image."""
Images: TypeAlias = "ArrayLike | str | Path | Sequence[str | Path]"


def is_array(image: object) -> bool:
    """Tell whether an image is an array, and not a path or several paths."""
    return hasattr(image, "__array__")


def image_of(
    image: Images, spacing: Sequence[float] | None, affine: ArrayLike | None, predictor: Callable[[], Predictor]
) -> Image | tuple[Path, ...]:
    """Convert an image to the form that the predictor takes: in memory, or as one file for each channel.

    Args:
        image: see `fusionseg.predict`.
        spacing: for an array: voxel sizes in mm along X, Y, Z.
        affine: for an array, instead of `spacing`: 4x4, from voxel index to mm in RAS.
        predictor: opens the predictor, which has the readers and the channels to find the image of a folder.

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
    if isinstance(image, Sequence) and not isinstance(image, str) and all(isinstance(p, (str, Path)) for p in image):
        if image:
            return tuple(Path(path) for path in image)
    elif isinstance(image, (str, Path)):
        return _one_image(Path(image), predictor)
    raise UserError(f"image: expected an array, a path or paths, got {type(image).__name__}")


def _one_image(path: Path, predictor: Callable[[], Predictor]) -> tuple[Path, ...]:
    """The files of the one image that a path stands for.

    Raises:
        UserError: there is no image, or there are several.
    """
    from fusionseg.data.inputs.found import InputOptions
    from fusionseg.data.inputs.inputs import find_inputs

    if not path.is_dir():  # reading the file reports what is wrong with it
        return (path,)
    opened = predictor()
    options = InputOptions(missing_channels=opened.missing_channels)
    cases = find_inputs(path, opened.channels, opened.readers, options).cases
    if len(cases) > 1:
        raise UserError(f"{path}: holds {len(cases)} images (expected one image, or an array); for several, set output")
    return cases[0].images


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
