"""Tiles of whole slides: `python -m fusionseg.pathology.slides SLIDE ... --output FOLDER`.

Slides are read by cuCIM where it is installed. Without it, only images that fit into memory are read.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fusionseg.utils.errors import UserError
from fusionseg.utils.files import writable_folder

CUCIM = "cucim"
MAX_PIXELS = 500_000_000
"""Largest image that is read without cuCIM, 1.5 GB of memory."""
SATURATED = 0.07
"""Saturation above which a pixel is tissue: glass is grey, stained tissue is not."""


class Slide(Protocol):
    """A slide at one level of its pyramid."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the level."""

    def read(self, x: int, y: int, size: int) -> NDArray[np.uint8]:
        """Read a square region (Y, X, 3), whose first pixel is x, y of the level."""


class CucimSlide:
    """A slide that cuCIM reads, from its file alone.

    Args:
        path: of the slide.
        level: of its pyramid; 0 is the full resolution.

    Raises:
        UserError: cuCIM cannot read the file, or there is no such level.
    """

    def __init__(self, path: Path, level: int) -> None:
        module: Any = importlib.import_module(CUCIM)
        try:
            self.image = module.CuImage(str(path))
        except (RuntimeError, ValueError) as error:  # cuCIM's errors for files that it cannot read
            raise UserError(f"{path}: cuCIM cannot read it ({error}); fetch it again, or convert it to TIFF") from None
        levels = self.image.resolutions
        if level >= levels["level_count"]:
            raise UserError(f"--level {level}: {path} has {levels['level_count']} levels; give one below this number")
        self.level = level
        width, height = levels["level_dimensions"][level]
        self.size = (int(width), int(height))
        self.downsampling = float(levels["level_downsamples"][level])

    def read(self, x: int, y: int, size: int) -> NDArray[np.uint8]:
        """Read a region. cuCIM counts its place in pixels of level 0."""
        place = (round(x * self.downsampling), round(y * self.downsampling))
        region = self.image.read_region(location=place, size=(size, size), level=self.level)
        pixels: NDArray[np.uint8] = np.asarray(region)[..., :3]
        return pixels


class PlainSlide:
    """An image without a pyramid, in memory.

    Args:
        path: of the image.
        level: of the pyramid; only 0 is there.

    Raises:
        UserError: the image cannot be read without cuCIM.
    """

    def __init__(self, path: Path, level: int) -> None:
        install = "install cuCIM (pip install cucim-cu12, on Linux)"
        if level:
            raise UserError(f"--level {level}: levels of a slide are read by cuCIM; {install}, or leave --level out")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UserError(f"{path}: {image.width} x {image.height} pixels are too many for memory; {install}")
                self.pixels: NDArray[np.uint8] = np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise UserError(f"{path}: cannot be read as an image ({error}); {install}") from None
        finally:
            Image.MAX_IMAGE_PIXELS = limit
        self.size = (self.pixels.shape[1], self.pixels.shape[0])

    def read(self, x: int, y: int, size: int) -> NDArray[np.uint8]:
        """Read a region."""
        return self.pixels[y : y + size, x : x + size]


def open_slide(path: Path, level: int = 0) -> Slide:
    """Open a slide by cuCIM, or as a plain image where it is not installed.

    Args:
        path: of the slide.
        level: of its pyramid.

    Raises:
        UserError: the slide cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    has_cucim = importlib.util.find_spec(CUCIM) is not None
    return CucimSlide(path, level) if has_cucim else PlainSlide(path, level)


def tissue_tiles(slide: Slide, size: int, least: float) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
    """Yield the tiles of a grid that show tissue, each with its place x, y and its pixels (Y, X, 3).

    Args:
        slide: to cut.
        size: edge of a tile in pixels.
        least: smallest share of a tile that is tissue.
    """
    width, height = slide.size
    for y in range(0, height - size + 1, size):
        for x in range(0, width - size + 1, size):
            pixels = slide.read(x, y, size)
            highest = pixels.max(axis=2).astype(np.float32)
            saturation = 1 - pixels.min(axis=2) / np.maximum(highest, 1)
            if (saturation > SATURATED).mean() >= least:
                yield x, y, pixels


def cut_tiles(path: Path, output: Path, *, size: int, level: int, least: float) -> int:
    """Write the tiles of a slide that show tissue, as OUTPUT/SLIDE/SLIDE_x_y.png; return their number."""
    slide = open_slide(path, level)
    folder = output / path.stem
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty, and its tiles are not replaced; move it, or choose another --output")
    writable_folder(folder, "--output")
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for x, y, pixels in tissue_tiles(slide, size, least):
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{path.stem}_{x}_{y}.png")
        count += 1
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    """Cut tiles of slides."""
    parser = argparse.ArgumentParser("python -m fusionseg.pathology.slides", description="cut tiles of whole slides")
    parser.add_argument(
        "slides", nargs="+", type=Path, metavar="SLIDE", help="whole-slide image, such as x.svs or x.tif"
    )
    parser.add_argument("--output", required=True, type=Path, help="folder; each slide gets a folder within it")
    parser.add_argument("--size", type=int, default=96, help="edge of a tile in pixels (default 96)")
    parser.add_argument("--level", type=int, default=0, help="level of the pyramid (default 0, the full resolution)")
    parser.add_argument("--tissue", type=float, default=0.5, help="least share of tissue in a tile (default 0.5)")
    given = parser.parse_args(arguments)
    try:
        if given.size < 1 or given.level < 0 or not 0 <= given.tissue <= 1:
            raise UserError(
                "expected --size of at least 1, --level of at least 0, and --tissue from 0 to 1; correct it"
            )
        for path in given.slides:
            count = cut_tiles(path, given.output, size=given.size, level=given.level, least=given.tissue)
            print(f"{path}: {count} tiles")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
