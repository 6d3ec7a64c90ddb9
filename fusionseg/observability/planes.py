"""Geometry of pictures of a volume: axial, coronal and sagittal planes, the place they go through, and their scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Position: TypeAlias = tuple[int, int, int]
Spacing: TypeAlias = tuple[float, float, float]

ERROR_WINDOW_MM = 5.0
"""Edge of the cube whose wrong voxels are counted to find the place of most error."""
MIN_MARGIN_MM, MARGIN = 5.0, 0.1
"""Space around the masks in a part of a volume: in mm, and as a share of the masks' extent."""
NEARLY_WHOLE = 0.85
"""Share of a volume along each axis from which a part is replaced by the whole volume."""
_MAX_SEARCHED = 20_000_000


@dataclass(frozen=True)
class Plane:
    """A plane of a volume in RAS order, shown as radiologists do: the patient's right is on the left.

    Args:
        name: axial, coronal or sagittal.
        across: axis from the right side of the picture to its left side.
        up: axis from the bottom of the picture to its top.
        normal: the third axis.
        sides: letters of the left, right, top and bottom side: Right, Left, Anterior, Posterior, Superior, Inferior.
    """

    name: str
    across: int
    up: int
    normal: int
    sides: str

    def cut(self, volume: NDArray[Any], at: Position, box: Box) -> NDArray[Any]:
        """Cut the plane out of a part of a volume.

        Args:
            volume: (X, Y, Z).
            at: the plane goes through this voxel.
            box: the part.

        Returns:
            (H, W), the first row is the top.
        """
        index: list[int | slice] = list(box.slices)
        index[self.normal] = at[self.normal]
        # The axes that are left are in ascending order, and `across` is always the lower one.
        shown: NDArray[Any] = volume[tuple(index)].T[::-1, ::-1]
        return shown

    def size_px(self, box: Box, spacing_mm: Spacing, scale: float) -> tuple[int, int]:
        """Width and height of the plane in pixels.

        Args:
            box: the part of the volume.
            spacing_mm: size of a voxel along each axis.
            scale: pixels for each mm.
        """
        extent = box.extent_mm(spacing_mm)
        return max(1, round(extent[self.across] * scale)), max(1, round(extent[self.up] * scale))


PLANES = (
    Plane("axial", 0, 1, 2, "RLAP"),
    Plane("coronal", 0, 2, 1, "RLSI"),
    Plane("sagittal", 1, 2, 0, "APSI"),
)


@dataclass(frozen=True)
class Box:
    """A part of a volume: from `low` up to but without `high`, along each axis."""

    low: Position
    high: Position

    @staticmethod
    def whole(shape: Sequence[int]) -> Box:
        """The whole volume of a shape."""
        x, y, z = shape
        return Box((0, 0, 0), (x, y, z))

    @property
    def slices(self) -> tuple[slice, ...]:
        return tuple(map(slice, self.low, self.high))

    def extent_mm(self, spacing_mm: Spacing) -> tuple[float, ...]:
        """Length along each axis, for voxels of this size."""
        return tuple((high - low) * mm for low, high, mm in zip(self.low, self.high, spacing_mm, strict=True))


def planes_of(shape: Sequence[int]) -> list[Plane]:
    """The planes that show something of a volume: those with more than one voxel along both of their axes.

    Args:
        shape: of the volume.
    """
    return [plane for plane in PLANES if shape[plane.across] > 1 and shape[plane.up] > 1] or [PLANES[0]]


def row_scale(planes: Sequence[Plane], box: Box, spacing_mm: Spacing, width: int, height: int) -> float:
    """Pixels for each mm, so that planes side by side fill a row.

    Args:
        planes: the planes.
        box: the part of the volume that is shown.
        spacing_mm: size of a voxel along each axis.
        width: pixels of all planes together.
        height: pixels of the highest plane.
    """
    extent = box.extent_mm(spacing_mm)
    return min(
        width / sum(extent[plane.across] for plane in planes), height / max(extent[plane.up] for plane in planes)
    )


def bounding_box(mask: NDArray[np.bool_]) -> Box:
    """The smallest part of a volume that holds all voxels of a mask; the whole volume if there are none.

    Args:
        mask: (X, Y, Z).
    """
    found = [np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis))) for axis in range(3)]
    if not len(found[0]):
        return Box.whole(mask.shape)
    (x, y, z), (to_x, to_y, to_z) = [int(one[0]) for one in found], [int(one[-1]) + 1 for one in found]
    return Box((x, y, z), (to_x, to_y, to_z))


def foreground_box(mask: NDArray[np.bool_], spacing_mm: Spacing) -> Box:
    """The part of a volume around a mask, with a margin; the whole volume if the part is nearly as large.

    Args:
        mask: (X, Y, Z).
        spacing_mm: size of a voxel along each axis.
    """
    inner, whole = bounding_box(mask), Box.whole(mask.shape)
    margins = [
        round(max(MIN_MARGIN_MM, MARGIN * extent) / mm)
        for extent, mm in zip(inner.extent_mm(spacing_mm), spacing_mm, strict=True)
    ]
    low = [max(0, start - margin) for start, margin in zip(inner.low, margins, strict=True)]
    high = [min(size, end + margin) for end, margin, size in zip(inner.high, margins, mask.shape, strict=True)]
    if all(end - start >= NEARLY_WHOLE * size for start, end, size in zip(low, high, mask.shape, strict=True)):
        return whole
    return Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))


def position_of_interest(drawn: NDArray[np.bool_], wrong: NDArray[np.bool_] | None, spacing_mm: Spacing) -> Position:
    """Find the voxel that planes should go through.

    Args:
        drawn: True in the masks, (X, Y, Z).
        wrong: True where prediction and reference differ; None without a reference.
        spacing_mm: size of a voxel along each axis.

    Returns:
        The wrong voxel with the most wrong voxels in a cube of `ERROR_WINDOW_MM` around it. Without wrong voxels, the
        position with the most foreground along each axis. Without foreground, the middle.
    """
    if wrong is not None and wrong.any():
        return _most_error(wrong, spacing_mm)
    if drawn.any():
        x, y, z = (
            int(drawn.sum(axis=tuple(other for other in range(3) if other != axis)).argmax()) for axis in range(3)
        )
        return x, y, z
    x, y, z = (size // 2 for size in drawn.shape)
    return x, y, z


def _most_error(wrong: NDArray[np.bool_], spacing_mm: Spacing) -> Position:
    from scipy.ndimage import uniform_filter  # slow to import

    box = bounding_box(wrong)
    part = wrong[box.slices]
    # A network without training is wrong nearly everywhere: every second or third voxel is enough to find the place.
    step = 1
    while prod(part.shape) / step**3 > _MAX_SEARCHED:
        step += 1
    part = part[::step, ::step, ::step]
    window = [2 * round(ERROR_WINDOW_MM / (2 * mm * step)) + 1 for mm in spacing_mm]
    density = uniform_filter(part.astype(np.float32), window, mode="constant")
    density[~part] = -1
    found = np.unravel_index(int(density.argmax()), part.shape)
    x, y, z = (low + step * int(index) for low, index in zip(box.low, found, strict=True))
    return x, y, z
