"""Paint tissue into an image: each has a soft edge that is one voxel wide; then blur and noise."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fusionseg.data.synthetic.shapes import Array, Axes, Segment, draw_tubes


def coverage_of(distance: Array, voxel: float) -> Array:
    """Share of each voxel that lies inside a surface.

    Args:
        distance: inside the surface, mm; negative outside.
        voxel: edge, mm.
    """
    return np.clip(0.5 + distance / voxel, 0, 1)


class Canvas:
    """An image that is painted from outside to inside: later tissue covers earlier one.

    Args:
        axes: positions of the voxel centres along x, y, z, mm.
        voxel: edge of a voxel, mm; the width of the soft edges.
        background: value of the empty image.
        rng: for the textures and the noise.
    """

    def __init__(self, axes: Axes, voxel: float, background: float, rng: np.random.Generator) -> None:
        self.axes, self.voxel, self._rng = axes, voxel, rng
        self._shape = tuple(len(axis) for axis in axes)
        self.image = np.full(self._shape, background, np.float32)

    def texture(self, sigma: float) -> Array:
        """Draw noise of unit variance with a grain of `sigma` voxels."""
        field: Array = ndimage.gaussian_filter(self._rng.standard_normal(self._shape, np.float32), sigma, truncate=3)
        field /= field.std()
        return field

    def paint(self, coverage: Array, value: float | Array) -> None:
        """Blend a value into the image, by the share of each voxel (0 to 1) that it takes."""
        self.image += coverage * (value - self.image)

    def fill(self, distance: Array, value: float | Array) -> None:
        """Paint the inside of a surface, where the distance (mm) is positive."""
        self.paint(coverage_of(distance, self.voxel), value)

    def tubes(self, segments: Iterable[Segment], value: float | Array, wall: float = 0) -> None:
        """Paint tubes, with `wall` mm added to every radius."""
        self.paint(draw_tubes(segments, self.axes, self.voxel, wall), value)

    def finished(self, noise: float) -> Array:
        """The image with the blur of a scanner and noise of this standard deviation: float32 XYZ."""
        return ndimage.gaussian_filter(self.image, 0.4, truncate=3) + noise * self.texture(0.5)


def to_int16(image: Array, lowest: int, highest: int) -> NDArray[np.int16]:
    """Round and clip an image."""
    rounded: NDArray[np.int16] = np.clip(np.rint(image), lowest, highest).astype(np.int16)
    return rounded
