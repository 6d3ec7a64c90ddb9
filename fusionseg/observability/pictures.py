"""Pictures of predictions and reconstructions, as arrays (3, H, W)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionseg.utils.errors import WriteError
from fusionseg.utils.files import whole_file

log = logging.getLogger("fusionseg")

COLORS = np.array(
    [
        (0.9, 0.3, 0.2),
        (0.2, 0.7, 0.3),
        (0.25, 0.45, 0.95),
        (0.95, 0.8, 0.2),
        (0.7, 0.35, 0.85),
        (0.2, 0.8, 0.85),
    ]
)


def paint(image: NDArray[Any], mask: NDArray[Any]) -> NDArray[np.float32]:
    """Draw a grey slice with its mask in colour.

    Args:
        image: intensities, (X, Y).
        mask: class of each pixel, (X, Y); 0 is background.

    Returns:
        RGB in [0, 1], (3, Y, X), with the second axis of the slice pointing up.
    """
    grey = _grey(image, image)
    color = COLORS[(mask - 1) % len(COLORS)]
    return _as_picture(np.where((mask > 0)[..., None], 0.5 * grey + 0.5 * color, grey))


def topmost(masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Draw masks over each other, as a mask for `paint`.

    Args:
        masks: (R, ...), at most 255; a later one is drawn over an earlier one.

    Returns:
        (...), the number from 1 of the last mask that holds, 0 where none does.
    """
    drawn = np.zeros(masks.shape[1:], np.uint8)
    for number, mask in enumerate(masks, start=1):
        drawn[mask] = number
    return drawn


def reconstruction_strip(
    image: NDArray[Any], masked: NDArray[Any], reconstruction: NDArray[Any]
) -> NDArray[np.float32]:
    """Draw three slices side by side: the original, the masked input of the network, and its reconstruction.

    Args:
        image: original intensities, (X, Y); its grey scale is used for all three.
        masked: the original with the hidden voxels set to black, (X, Y).
        reconstruction: output of the network, (X, Y).

    Returns:
        RGB in [0, 1], (3, Y, 3 X).
    """
    slices = [_as_picture(_grey(np.asarray(one), np.asarray(image))) for one in (image, masked, reconstruction)]
    return np.concatenate(slices, axis=2)


class PictureFolder:
    """Folder for pictures of a run, as PNG files. The first one that cannot be written gives a warning.

    Args:
        folder: the folder; None writes no pictures.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._has_failed = False

    def write(self, tag: str, image: NDArray[np.float32], step: int) -> None:
        """Write a picture as `<tag>_<step>.png`.

        Args:
            tag: beginning of the file's name.
            image: RGB in [0, 1], (3, H, W).
            step: completed optimizer steps.
        """
        if self._folder is None:
            return
        from matplotlib.image import imsave  # slow to import, and only needed for pictures

        try:
            with whole_file(self._path(self._folder, tag, step)) as temporary:
                imsave(temporary, np.clip(image.transpose(1, 2, 0), 0, 1))
        except WriteError as error:
            if not self._has_failed:
                self._has_failed = True
                log.warning("%s; the run continues without pictures until the disk takes them", error)
            return
        self._has_failed = False

    def read(self, tag: str, step: int) -> NDArray[np.float32] | None:
        """Read a picture that an earlier start wrote; None if there is none, or if it is damaged.

        Args:
            tag, step: see `write`.

        Returns:
            RGB in [0, 1], (3, H, W).
        """
        from matplotlib.image import imread

        try:
            rgba = imread(self._path(self._folder, tag, step)) if self._folder is not None else None
        except (OSError, SyntaxError):  # a PNG that is cut off raises SyntaxError
            return None
        return None if rgba is None else np.ascontiguousarray(rgba[..., :3].transpose(2, 0, 1), np.float32)

    @staticmethod
    def _path(folder: Path, tag: str, step: int) -> Path:
        return folder / f"{tag}_{step:08d}.png"


def _grey(image: NDArray[Any], reference: NDArray[Any]) -> NDArray[Any]:
    """Scale a slice (X, Y) to grey RGB (X, Y, 3) in [0, 1] between the 1st and 99th percentile of a reference."""
    low, high = np.percentile(reference, (1, 99))
    return np.clip((image - low) / max(high - low, 1e-6), 0, 1)[..., None].repeat(3, axis=2)


def _as_picture(rgb: NDArray[Any]) -> NDArray[np.float32]:
    """Convert (X, Y, 3) to (3, Y, X), with the second axis of the slice pointing up."""
    picture: NDArray[np.float32] = rgb.transpose(2, 1, 0)[:, ::-1].astype(np.float32)
    return picture
