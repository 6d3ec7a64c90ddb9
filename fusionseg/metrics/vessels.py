"""Metrics of vessels and other tubes: clDice of the centrelines, and the branches that a prediction finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import convolve, distance_transform_edt, label
from skimage.morphology import skeletonize

MIN_COVERED = 0.5
"""Share of the centreline of a branch that lies in the prediction, from which on the branch is found."""
_NEIGHBOURS = np.ones((3, 3, 3), np.uint8)


@dataclass(frozen=True)
class Branch:
    """A branch of the true vessels: a piece of the centreline between two junctions."""

    voxels: int
    """Voxels of its centreline."""
    diameter_mm: float
    """Twice the median distance from the centreline to the nearest voxel outside of the vessel, in mm."""
    covered: float
    """Share of its centreline that lies in the predicted mask."""

    @property
    def is_found(self) -> bool:
        """True if at least half of the centreline is covered."""
        return self.covered >= MIN_COVERED


class VesselComparison:
    """A predicted and a true mask of vessels. The centrelines are computed once."""

    def __init__(self, predicted: NDArray[np.bool_], true: NDArray[np.bool_], spacing_mm: Sequence[float]) -> None:
        """Compute the centrelines.

        Args:
            predicted: (X, Y, Z), cut to the box of both masks or larger.
            true: of the same shape.
            spacing_mm: size of a voxel along each axis, in mm.
        """
        # Background on each side: a vessel that leaves the volume ends there.
        self._predicted, self._true = np.pad(predicted, 1), np.pad(true, 1)
        self._spacing_mm = tuple(float(size) for size in spacing_mm)
        self._lines = [centreline(mask) for mask in (self._predicted, self._true)]

    @property
    def cl_dice(self) -> float:
        """The harmonic mean of two shares: of the predicted centreline in the true mask, and of the true centreline in
        the predicted mask. nan if both masks are empty, 0 if one of them is; nan if the thinning leaves nothing of a
        mask, as of a solid block."""
        predicted_line, true_line = self._lines
        if not self._predicted.any() or not self._true.any():
            return 0.0 if self._predicted.any() or self._true.any() else nan
        if not predicted_line.any() or not true_line.any():
            return nan
        precision = float(self._true[predicted_line].mean())
        sensitivity = float(self._predicted[true_line].mean())
        total = precision + sensitivity
        return 2 * precision * sensitivity / total if total else 0.0

    def branches(self) -> list[Branch]:
        """The branches of the true vessels, in the order of their first voxels."""
        line = self._lines[1]
        if not line.any():
            return []
        neighbours = convolve(line.astype(np.uint8), _NEIGHBOURS, mode="constant") - 1
        pieces, count = label(line & (neighbours <= 2), _NEIGHBOURS)
        radius = distance_transform_edt(self._true, sampling=self._spacing_mm)
        order = np.argsort(pieces[pieces > 0], kind="stable")
        sizes = np.bincount(pieces[pieces > 0], minlength=count + 1)[1:]
        ends = np.cumsum(sizes)[:-1]
        radii, covered = (np.split(each[pieces > 0][order], ends) for each in (radius, self._predicted))
        return [
            Branch(len(inside), 2 * float(np.median(lengths)), float(inside.mean()))
            for lengths, inside in zip(radii, covered, strict=True)
            if len(inside)
        ]


def centreline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Thin a mask to its centreline (Lee et al., CVGIP 56(6), 1994, doi:10.1006/cgip.1994.1042), on the voxel grid.

    Args:
        mask: (X, Y, Z).
    """
    if not mask.any():
        return np.zeros_like(mask)
    line: NDArray[np.bool_] = skeletonize(mask) > 0
    return line


def share_found(branches: Sequence[Branch]) -> float:
    """The share of the branches that are found; nan without a branch.

    Args:
        branches: of one kind.
    """
    return sum(branch.is_found for branch in branches) / len(branches) if branches else nan
