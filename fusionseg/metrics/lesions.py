"""Detection of lesions: connected components of the label, found by connected components of the prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, prod

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import center_of_mass, label
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

_NEIGHBOURS = np.ones((3, 3, 3), bool)  # 26: voxels that share a corner belong to one lesion


@dataclass(frozen=True)
class Lesion:
    """A lesion of the label or of the prediction."""

    is_true: bool
    """True for one of the label."""
    volume_ml: float
    centre: tuple[float, ...]
    """Centre of mass as a voxel index (x, y, z) of the masks."""
    iou: float
    """Intersection over union with the lesion that it is matched with; 0 without one."""
    dice: float
    """Dice with that lesion; 0 without one."""

    @property
    def is_matched(self) -> bool:
        """True if it has a counterpart in the other mask."""
        return self.iou > 0


@dataclass(frozen=True)
class LesionDetection:
    """The lesions of one class in one case."""

    lesions: tuple[Lesion, ...]
    """Those of the label first."""

    @property
    def _true(self) -> list[Lesion]:
        return [one for one in self.lesions if one.is_true]

    @property
    def false_positives(self) -> int:
        """Number of predicted lesions without a counterpart."""
        return sum(not one.is_true and not one.is_matched for one in self.lesions)

    @property
    def sensitivity(self) -> float:
        """Share of the true lesions that are found; nan without a true lesion."""
        return sum(one.is_matched for one in self._true) / len(self._true) if self._true else nan

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN) over lesions; nan if there is no lesion in either mask."""
        return sum(one.is_matched for one in self.lesions) / len(self.lesions) if self.lesions else nan

    @property
    def mean_dice(self) -> float:
        """Mean over the true lesions of the Dice with their counterpart, 0 for a missed one; nan without one."""
        return sum(one.dice for one in self._true) / len(self._true) if self._true else nan


def detect_lesions(
    predicted: NDArray[np.bool_],
    true: NDArray[np.bool_],
    spacing_mm: Sequence[float],
    *,
    min_iou: float,
    min_ml: float = 0.0,
) -> LesionDetection:
    """Match the lesions of two masks one to one.

    A lesion is a connected component, of 26 neighbours. Pairs with an IoU above `min_iou` may be matched. Among them
    the matching with the largest sum of IoUs is chosen, so that a lesion counts once, although several may touch it.

    Args:
        predicted: (X, Y, Z).
        true: of the same shape.
        spacing_mm: size of a voxel along each axis, in mm.
        min_iou: from 0 to below 1.
        min_ml: lesions with a smaller volume are left out of both masks.
    """
    voxel_ml = prod(spacing_mm) / 1000
    ours, theirs = (_components(mask, min_ml / voxel_ml) for mask in (predicted, true))
    sizes = [np.bincount(each.ravel())[1:] for each in (ours, theirs)]
    pairs, counts = np.unique(np.stack([theirs[ours > 0], ours[ours > 0]]), axis=1, return_counts=True)
    overlapping = pairs[0] > 0
    (first, second), counts = pairs[:, overlapping] - 1, counts[overlapping]
    ious = counts / (sizes[1][first] + sizes[0][second] - counts)
    dices = 2 * counts / (sizes[1][first] + sizes[0][second])
    matched = _matching(first, second, ious, min_iou)
    lesions = []
    for is_true, components, volumes, index in ((True, theirs, sizes[1], first), (False, ours, sizes[0], second)):
        place = {int(index[pair]): pair for pair in matched}
        centres = center_of_mass(components > 0, components, range(1, len(volumes) + 1)) if len(volumes) else []
        for number, (volume, centre) in enumerate(zip(volumes, centres, strict=True)):
            pair = place.get(number)
            lesions.append(
                Lesion(
                    is_true,
                    float(volume) * voxel_ml,
                    tuple(float(each) for each in centre),
                    0.0 if pair is None else float(ious[pair]),
                    0.0 if pair is None else float(dices[pair]),
                )
            )
    return LesionDetection(tuple(lesions))


def _components(mask: NDArray[np.bool_], min_voxels: float) -> NDArray[np.int32]:
    """Number the connected components from 1, without the small ones."""
    numbers, count = label(mask, _NEIGHBOURS)
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)
    # A volume that is equal to the smallest one may be a rounding error smaller.
    large = sizes >= min_voxels * (1 - 1e-9)
    large[0] = False
    renumbered: NDArray[np.int32] = np.where(large, np.cumsum(large), 0).astype(np.int32)[numbers]
    return renumbered


def _matching(
    first: NDArray[np.int64], second: NDArray[np.int64], ious: NDArray[np.float64], min_iou: float
) -> list[int]:
    """The pairs of the matching with the largest sum of IoUs, as positions in the arguments.

    Args:
        first: for each pair the index of its true lesion.
        second: for each pair the index of its predicted lesion.
        ious: of the pairs.
        min_iou: pairs that are not above it are left out.
    """
    usable = np.flatnonzero(ious > min_iou)
    if not len(usable):
        return []
    # Lesions that touch nothing in common are matched apart: the matrices stay small with thousands of lesions.
    size = int(first.max()) + 1
    shape = (size + int(second.max()) + 1,) * 2
    graph = coo_array((np.ones(len(usable)), (first[usable], size + second[usable])), shape=shape)
    _, group = connected_components(graph, directed=False)
    chosen: list[int] = []
    for number in np.unique(group[first[usable]]):
        pairs = usable[group[first[usable]] == number]
        rows, row = np.unique(first[pairs], return_inverse=True)
        columns, column = np.unique(second[pairs], return_inverse=True)
        gain, position = np.zeros((len(rows), len(columns))), np.full((len(rows), len(columns)), -1)
        gain[row, column], position[row, column] = ious[pairs], pairs
        taken = position[linear_sum_assignment(gain, maximize=True)]
        chosen += [int(pair) for pair in taken if pair >= 0]
    return chosen
