"""The reader of tiles: RGB images in common formats, as volumes of one slice."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fusionseg.data.formats.image_file import VolumeError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_MODES = ("RGB", "RGBA", "P")
_REMEDY = "fetch the file again, or take the tile out of the data set"


class TileReader:
    """RGB tiles, 8 bits a channel. A transparent channel is left out, if it is opaque everywhere.

    Args:
        pixel_um: size of a pixel in micrometres, 0.5 for a scan at 20x.
    """

    suffixes = SUFFIXES

    def __init__(self, pixel_um: float = 0.5) -> None:
        if not pixel_um > 0:
            raise ValueError(f"pixel_um: expected a size in micrometres above 0, got {pixel_um}")
        size = pixel_um / 1000
        self.affine = np.diag([size, size, size, 1.0])

    def read(self, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """Read a tile.

        Args:
            path: the file.

        Returns:
            (3, X, Y, 1) uint8: X from left to right, Y from top to bottom; and the affine, without a position.

        Raises:
            VolumeError: the file is damaged, or is no RGB image.
        """
        with _opened(path) as image:
            _check_mode(image)
            try:
                pixels = np.asarray(image.convert("RGBA" if image.mode != "RGB" else "RGB"))
            except (OSError, SyntaxError, ValueError) as error:
                raise VolumeError("truncated", f"the image cannot be decoded ({error})", _REMEDY) from None
        if pixels.shape[2] == 4 and (pixels[..., 3] != 255).any():
            raise VolumeError("dimensions", "the tile is transparent in part", "convert it to RGB on its background")
        return np.ascontiguousarray(pixels[..., :3].transpose(2, 1, 0)[..., None]), self.affine

    def read_geometry(self, path: Path) -> tuple[tuple[int, ...], NDArray[np.float64]]:
        """Read the shape and the affine of a tile from its header; see `read`."""
        with _opened(path) as image:
            _check_mode(image)
            return (3, image.width, image.height, 1), self.affine


def _opened(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(path)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise VolumeError(
            "memory", "the image is too large for a tile", "cut tiles: python -m fusionseg.pathology.slides"
        ) from None
    except (UnidentifiedImageError, OSError) as error:
        raise VolumeError("header", f"is no image that can be read ({error})", _REMEDY) from None


def _check_mode(image: Image.Image) -> None:
    """Refuse images that are not RGB, and stacks of several images."""
    if image.mode not in _MODES:
        raise VolumeError(
            "dimensions", f"the image has the mode {image.mode} (expected RGB, 8 bits a channel)", "convert it to RGB"
        )
    if (frames := getattr(image, "n_frames", 1)) != 1:
        raise VolumeError("dimensions", f"the file holds {frames} images (expected one)", "write each to its own file")
