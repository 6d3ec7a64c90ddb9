"""Metrics of the surfaces of two masks: HD95, average surface distance and normalised surface Dice.

Nearest points are found by a k-d tree over the points of a surface: its memory and time grow with the surface and not
with the volume between two distant parts, as those of a distance transform do.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import product
from math import nan
from typing import Any

import numpy as np
from monai.metrics.utils import create_table_neighbour_code_to_surface_area
from numpy.typing import NDArray
from scipy.spatial import KDTree

_INSIDE = 255  # neighbourhood code of 2 x 2 x 2 voxels that are all in the mask; 0 if none is
_CODE_WEIGHTS = (128, 64, 32, 16, 8, 4, 2, 1)  # of the voxels of a neighbourhood in C order, as in the table of areas


class SurfaceComparison:
    """The surfaces of a predicted and a true mask. Each is computed once, where a metric needs it."""

    def __init__(self, predicted: NDArray[np.bool_], true: NDArray[np.bool_], spacing_mm: Sequence[float]) -> None:
        """Cut the masks to the box that holds both.

        Args:
            predicted: (X, Y, Z).
            true: of the same shape.
            spacing_mm: size of a voxel along each axis, in mm.
        """
        self.spacing_mm = tuple(float(size) for size in spacing_mm)
        box = _bounding_box(predicted, true)
        # One voxel of background on each side: everything beyond the border of the volume is outside.
        self._predicted, self._true = (np.pad(mask[box], 1) for mask in (predicted, true))
        self._empty = not predicted[box].any(), not true[box].any()

    @property
    def hd95_mm(self) -> float:
        """The 95 % Hausdorff distance, in mm; nan if a mask is empty. See `DEFINITIONS["hd95_mm"]`."""
        if any(self._empty):
            return nan
        # Rounded to float32 as MONAI's distances are, so that the values are those of MONAI.
        rounded = (one.astype(np.float32).astype(np.float64) for one in self._voxel_distances)
        return max(float(np.percentile(one, 95)) for one in rounded)

    @property
    def assd_mm(self) -> float:
        """The average symmetric surface distance, in mm; nan if a mask is empty. See `DEFINITIONS["assd_mm"]`."""
        return nan if any(self._empty) else float(np.concatenate(self._voxel_distances).mean())

    def nsd(self, tolerance_mm: float) -> float:
        """Compute the normalised surface Dice; nan if both masks are empty. See `DEFINITIONS["nsd"]`.

        Args:
            tolerance_mm: largest distance that counts as agreement, in mm.
        """
        if any(self._empty):
            return nan if all(self._empty) else 0.0
        near = total = 0.0
        for distances, areas in self._surfels:
            near += float(areas[distances <= tolerance_mm].sum())
            total += float(areas.sum())
        return near / total

    @cached_property
    def _voxel_distances(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Distances in mm from the surface voxels of each mask to those of the other."""
        return self._directed(_surface_voxels(self._predicted), _surface_voxels(self._true))

    @cached_property
    def _surfels(self) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """For each mask the distances in mm from its surface elements to those of the other, and their areas in mm²."""
        table, _ = create_table_neighbour_code_to_surface_area(self.spacing_mm)
        area_of_code = table.double().numpy()
        codes = [_neighbourhood_codes(mask) for mask in (self._predicted, self._true)]
        surfaces = [(code != 0) & (code != _INSIDE) for code in codes]
        areas = [area_of_code[code[surface]] for code, surface in zip(codes, surfaces, strict=True)]
        return list(zip(self._directed(*surfaces), areas, strict=True))

    def _directed(
        self, first: NDArray[np.bool_], second: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Distances in mm from the points of each surface to the nearest of the other, in C order of the points."""
        return self._nearest(first, second), self._nearest(second, first)

    def _nearest(self, surface: NDArray[np.bool_], other: NDArray[np.bool_]) -> NDArray[np.float64]:
        distances = np.zeros(np.count_nonzero(surface))
        apart = ~other[surface]  # points of both surfaces have the distance 0
        points, others = np.argwhere(surface)[apart], np.argwhere(other)
        if len(points):
            spacing = np.array(self.spacing_mm)
            _, nearest = KDTree(others * spacing, leafsize=32).query(points * spacing)
            # From the differences of the indices: a distance of 3 voxels of 0.7 mm is 3 * 0.7 everywhere in the volume,
            # so that a tolerance does not depend on the place.
            distances[apart] = np.sqrt((((points - others[nearest]) * spacing) ** 2).sum(axis=1))
        return distances


def _bounding_box(*masks: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest box that holds all masks; an empty one if they are empty."""
    box = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(np.logical_or.reduce([mask.any(axis=others) for mask in masks]))
        box.append(slice(found[0], found[-1] + 1) if len(found) else slice(0, 0))
    return tuple(box)


def _surface_voxels(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The voxels of a mask that have a face neighbour outside of it.

    Args:
        mask: (X, Y, Z), with background on each side.
    """
    inner = mask[1:-1, 1:-1, 1:-1].copy()
    for axis, step in product(range(3), (0, 2)):
        shifted = tuple(
            slice(step, size - 2 + step) if number == axis else slice(1, -1) for number, size in enumerate(mask.shape)
        )
        inner &= mask[shifted]
    surface = mask.copy()
    surface[1:-1, 1:-1, 1:-1] &= ~inner
    return surface


def _neighbourhood_codes(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The code of each neighbourhood of 2 x 2 x 2 voxels, (X - 1, Y - 1, Z - 1): a bit for each voxel in the mask."""
    voxels = mask.view(np.uint8)
    codes = np.zeros(tuple(size - 1 for size in mask.shape), np.uint8)
    for weight, corner in zip(_CODE_WEIGHTS, product((0, 1), repeat=3), strict=True):
        part: Any = voxels[tuple(slice(at, size - 1 + at) for at, size in zip(corner, mask.shape, strict=True))]
        codes += part * np.uint8(weight)
    return codes
