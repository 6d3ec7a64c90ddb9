"""The geometry rule of all commands: the grid of a volume, and the test that two files share a grid.

docs/data.md has the rule as a table. All commands read files through this module. So `fusionseg check` calls an error
exactly what the other commands refuse.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

SMALLEST_SPACING_MM = 1e-6
"""1 nm. Electron microscopy has voxels of 4 nm, slides have pixels of 0.25 micron."""
LARGEST_SPACING_MM = 100.0
"""Five to ten times the thickest slices. If a spacing is larger, the spacing or its unit is wrong."""
SAME_GRID_VOXELS = 1e-3
"""Two grids are the same if no corner is further apart than this: the rounding of headers makes such differences."""
CLOSE_GRID_VOXELS = 0.1
"""Up to this distance of corners, a difference is harmless and gives a warning.

The rounding of a float32 quaternion makes such differences in a large volume.
"""

LPS_TO_RAS: NDArray[np.float64] = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From the coordinates of DICOM and ITK to those of NIfTI."""


@dataclass(frozen=True)
class Grid:
    """The voxels of a volume in space.

    Args:
        shape: (X, Y, Z).
        affine: 4x4, from voxel index to mm in RAS+. NaN where the file gives no usable one; this has been noted as an
            error.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @property
    def known(self) -> bool:
        """True if the affine can be used."""
        return bool(np.isfinite(self.affine).all())

    @property
    def orientation(self) -> str:
        """Directions of the voxel axes, such as RAS."""
        return "".join(axis or "?" for axis in nibabel.orientations.aff2axcodes(self.affine))


@dataclass(frozen=True)
class Turn:
    """A permutation and flip of voxel axes: axis `source[i]` becomes axis i, and is reversed if `flip[i]` is True."""

    source: tuple[int, ...]
    flip: tuple[bool, ...]

    def __call__(self, array: NDArray[Any]) -> NDArray[Any]:
        """Turn an array of shape (X, Y, Z)."""
        turned = array.transpose(self.source)
        return turned[tuple(slice(None, None, -1 if flipped else None) for flipped in self.flip)]


KEEP = Turn((0, 1, 2), (False, False, False))


def voxel_sizes(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Lengths in mm of the three voxel axes of an affine."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(x), float(y), float(z)


def find_turn(own: Grid, wanted: Grid) -> tuple[Turn | None, float, float]:
    """Find the turn of voxel axes that brings one grid to another.

    Args:
        own: the grid to turn.
        wanted: the grid to reach.

    Returns:
        The turn, or None if flips and permutations do not lead from one grid to the other. Then the largest distance
        of the corners after the turn (or as they are stored, without a turn), in voxels of `wanted` and in mm.
    """
    to_wanted = np.linalg.inv(wanted.affine) @ own.affine
    # For each axis of `own`, the axis of `wanted` that is closest to it.
    targets = np.abs(to_wanted[:3, :3]).argmax(axis=0)
    plain = corner_distance(own.shape, to_wanted, np.eye(4), wanted.affine)
    if own.shape == wanted.shape and plain[0] <= CLOSE_GRID_VOXELS:
        return KEEP, *plain
    if len(set(targets.tolist())) == 3:
        source = np.argsort(targets)
        flips = [bool(to_wanted[axis, source[axis]] < 0) for axis in range(3)]
        turned_shape = tuple(own.shape[axis] for axis in source)
        exact = np.zeros((4, 4))
        exact[3, 3] = 1
        for axis, flipped in enumerate(flips):
            exact[axis, source[axis]] = -1 if flipped else 1
            exact[axis, 3] = turned_shape[axis] - 1 if flipped else 0
        apart = corner_distance(own.shape, to_wanted, exact, wanted.affine)
        if turned_shape == wanted.shape and apart[0] <= CLOSE_GRID_VOXELS:
            return Turn(tuple(int(axis) for axis in source), tuple(flips)), *apart
    return None, *plain


def find_margins(own: Grid, whole: Grid) -> list[tuple[int, int]] | None:
    """Find the numbers of voxels by which a part of a grid has to be extended to cover the whole grid.

    Args:
        own: the part; its axes may be flipped and permuted.
        whole: the grid.

    Returns:
        For each axis of the part, the numbers before and after it; None if the part is not inside, or if its voxels do
        not lie on those of the grid within 0.1 voxels.
    """
    to_whole = np.linalg.inv(whole.affine) @ own.affine
    targets = np.abs(to_whole[:3, :3]).argmax(axis=0)
    if len(set(targets.tolist())) != 3:
        return None
    exact = np.zeros((4, 4))
    exact[3, 3] = 1
    margins = []
    for axis, target in enumerate(targets):
        sign = 1 if to_whole[target, axis] > 0 else -1
        start = round(float(to_whole[target, 3]))
        last = start + sign * (own.shape[axis] - 1)
        exact[target, axis], exact[target, 3] = sign, start
        before, after = min(start, last), whole.shape[target] - 1 - max(start, last)
        margins.append((before, after) if sign > 0 else (after, before))
    apart, _ = corner_distance(own.shape, to_whole, exact, whole.affine)
    return margins if apart <= CLOSE_GRID_VOXELS and min(map(min, margins)) >= 0 else None


def is_invertible(affine: NDArray[np.float64]) -> bool:
    """Test that an affine has an inverse, so that it leads from mm back to voxels."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-6 * lengths.prod())


def corner_distance(
    shape: tuple[int, ...], one: NDArray[np.float64], other: NDArray[np.float64], affine: NDArray[np.float64]
) -> tuple[float, float]:
    """Largest distance of a volume's corners under two mappings.

    Args:
        shape: of the volume, (X, Y, Z).
        one: 4x4, the first mapping of voxel indices.
        other: 4x4, the second mapping.
        affine: 4x4, from the mapped indices to mm.

    Returns:
        The distance along an axis in voxels, and the distance in mm.
    """
    corners = np.array(list(itertools.product(*[(0, size - 1) for size in shape[:3]])))
    offset = corners @ (one - other)[:3, :3].T + (one - other)[:3, 3]
    return float(np.abs(offset).max()), float(np.linalg.norm(offset @ affine[:3, :3].T, axis=1).max())
