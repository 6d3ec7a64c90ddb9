"""Synthetic tiles of two classes: `python -m fusionseg.pathology.synthetic FOLDER`.

Pale tissue has few small nuclei (normal), or many large ones (tumour). The stain differs from slide to slide.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fusionseg.utils.errors import UserError
from fusionseg.utils.files import writable_folder

TISSUE, NUCLEI = np.array([225.0, 180.0, 210.0]), np.array([110.0, 60.0, 140.0])
"""Colours of a stain with haematoxylin and eosin."""


def write_tiles(root: Path, *, slides: int = 10, tiles: int = 20, size: int = 96, seed: int = 0) -> int:
    """Write CLASS/SLIDE/TILE.png for two classes, and return the number of tiles. The same seed gives the same pixels.

    Args:
        root: a new or empty folder.
        slides: number of slides, each with tiles of both classes.
        tiles: tiles of each slide and class.
        size: edge of a tile in pixels.
        seed: of the random numbers.

    Raises:
        UserError: the folder is not empty, or cannot be written.
    """
    if root.exists() and any(root.iterdir()):
        raise UserError(f"{root}: is not empty; name a new folder")
    writable_folder(root, "FOLDER")
    for slide in range(slides):
        stain = np.random.default_rng([seed, slide]).normal(0, 12, 3)
        for label, name in enumerate(("normal", "tumour")):
            folder = root / name / f"slide{slide:03d}"
            folder.mkdir(parents=True)
            for index in range(tiles):
                rng = np.random.default_rng([seed, slide, label, index])
                pixels = _tile(rng, stain, tumour=name == "tumour", size=size)
                Image.fromarray(pixels).save(folder / f"{name}_{slide:03d}_{index:03d}.png")
    return 2 * slides * tiles


def _tile(rng: np.random.Generator, stain: NDArray[np.float64], *, tumour: bool, size: int) -> NDArray[np.uint8]:
    """Draw a tile (Y, X, 3)."""
    y, x = np.mgrid[:size, :size]
    image = np.ones((size, size, 3)) * (TISSUE + stain)
    area = (size / 24) ** 2
    for _ in range(rng.poisson((6 if tumour else 3) * area)):
        centre, radius = rng.uniform(0, size, 2), rng.uniform(1.5, 3.5) if tumour else rng.uniform(1, 2)
        image[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2] = NUCLEI + stain + rng.normal(0, 10, 3)
    return (image + rng.normal(0, 8, image.shape)).clip(0, 255).astype(np.uint8)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write synthetic tiles."""
    parser = argparse.ArgumentParser("python -m fusionseg.pathology.synthetic", description="write synthetic tiles")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slides", type=int, default=10, help="number of slides (default 10)")
    parser.add_argument("--tiles", type=int, default=20, help="tiles of each slide and class (default 20)")
    parser.add_argument("--size", type=int, default=96, help="edge of a tile in pixels (default 96)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed writes the same pixels (default 0)")
    given = parser.parse_args(arguments)
    try:
        if min(given.slides, given.tiles, given.size) < 1:
            raise UserError("expected --slides, --tiles and --size of at least 1; correct them")
        count = write_tiles(given.folder, slides=given.slides, tiles=given.tiles, size=given.size, seed=given.seed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{given.folder}: {count} tiles of {given.size} x {given.size} pixels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
