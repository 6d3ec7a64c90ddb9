"""The random displacements of an elastic deformation, at the points of its coarse grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.loading.counter_random import counter_normal

LARGEST = 4.0
"""Largest displacement along an axis, in standard deviations: after interpolation, larger ones are cut."""


def coarse_displacement(key: int, patch: Sequence[int], spacing: float) -> NDArray[np.float32]:
    """The displacements in standard deviations: (D, X', Y', ...), that along the last axis first.

    Args:
        key: 32-bit key of the sample.
        patch: (D,), size in voxels along the axes that are deformed.
        spacing: distance of the points of the coarse grid in voxels.
    """
    coarse = [math.ceil(size / spacing) + 1 for size in patch]
    return counter_normal(key, len(coarse) * math.prod(coarse)).reshape(len(coarse), *coarse)


def displacement_of_axes(
    key: int, patch: Sequence[int], spacing: float, through_plane: int | None
) -> NDArray[np.float32]:
    """The displacements of `coarse_displacement` along all three axes: (3, X', Y', Z'), that along the last axis first.

    Args:
        key: 32-bit key of the sample.
        patch: (3,), size in voxels.
        spacing: distance of the points of the coarse grid in voxels.
        through_plane: the axis that is not deformed: it has one point, and no displacement; None for no such axis.
    """
    moved = [axis for axis in range(3) if axis != through_plane]
    of_moved = coarse_displacement(key, [patch[axis] for axis in moved], spacing)
    if through_plane is not None:
        of_moved = np.expand_dims(of_moved, through_plane + 1)
    found = np.zeros((3, *of_moved.shape[1:]), np.float32)
    found[[2 - axis for axis in reversed(moved)]] = of_moved
    return found
