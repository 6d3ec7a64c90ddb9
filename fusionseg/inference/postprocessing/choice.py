"""The choice of a post-processing: what improves the mean Dice of validation cases.

The rule is that of nnU-Net (Isensee et al., Nature Methods 18, 2021, doi:10.1038/s41592-020-01008-z, and its function
`determine_postprocessing`): the largest component of the foreground is kept if the mean Dice over the classes rises and
that of no class falls; then each class is decided by its own mean Dice. nnU-Net tries the largest component only. Holes
and smallest sizes are tried here in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.labels.scheme import IGNORE, LabelScheme
from fusionseg.inference.postprocessing.steps import (
    PostProcessing,
    Steps,
    box_of,
    components,
    keep_largest_foreground,
    with_filled_holes,
)
from fusionseg.metrics.overlap import VoxelCounts
from fusionseg.utils.means import nanmean

SIZES_ML = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Smallest sizes that are tried, as far as they are below the smallest volume of the class in a label."""
MIN_GAIN = 1e-4
"""Least gain in mean Dice: a smaller one is not seen in a table of four digits."""

_KEPT = (Steps(), Steps(largest=True), *(Steps(smallest_ml=size) for size in SIZES_ML))
CANDIDATES = tuple(replace(steps, fill_holes=fill) for fill in (False, True) for steps in _KEPT)
"""The steps that are tried for each class, with and without the largest component of the foreground before them."""


@dataclass(frozen=True)
class CaseTrial:
    """The Dice of one case by each candidate, and the sizes of the structures in its label."""

    dice: NDArray[np.float64]
    """(2, number of candidates, R): without and with the largest component of the foreground; nan without a value."""
    smallest_ml: tuple[float, ...]
    """(R,), volume of the smallest component of each class or region in the label; 0 if it has none."""


@dataclass(frozen=True)
class Choice:
    """A post-processing with its effect on the cases that it was chosen on."""

    chosen: PostProcessing
    names: tuple[str, ...]
    before: NDArray[np.float64]
    """(cases, R), the Dice without post-processing."""
    after: NDArray[np.float64]
    held_out: NDArray[np.float64] | None = None
    """(cases, R), the Dice of each case with the steps that were chosen on the cases of the other runs; None if there
    are no other runs."""


def try_candidates(
    outputs: NDArray[np.uint8] | NDArray[np.bool_],
    true: NDArray[np.uint8],
    annotated: NDArray[np.bool_],
    scheme: LabelScheme,
    spacing_mm: Sequence[float],
) -> CaseTrial:
    """Compute the Dice of a case by each candidate. Ignored voxels do not count.

    Args:
        outputs: class indices (X, Y, Z); with sigmoid outputs a mask of each, (R, X, Y, Z).
        true: the label, class indices, `IGNORE` without annotation.
        annotated: (R,), the outputs that the case annotates.
        scheme: of the outputs.
        spacing_mm: size of a voxel along each axis.
    """
    voxel_ml = prod(spacing_mm) / 1000
    valid = true != IGNORE
    members = scheme.membership_of_indices
    dice = np.full((2, len(CANDIDATES), len(members)), np.nan)
    smallest_ml = [
        _smallest_component(member[true] & known) * voxel_ml for member, known in zip(members, annotated, strict=True)
    ]
    for with_foreground in (0, 1):
        if with_foreground:
            outputs = outputs.copy()
            keep_largest_foreground(outputs, sigmoid=scheme.sigmoid)
        for index in np.flatnonzero(annotated):
            predicted = outputs[index].astype(bool) if scheme.sigmoid else outputs == index + 1
            free = ~predicted if scheme.sigmoid else outputs == 0
            truth = members[index][true]
            dice[with_foreground, :, index] = _dice_of_candidates(predicted, free, truth, valid, voxel_ml)
    return CaseTrial(dice, tuple(smallest_ml))


def _dice_of_candidates(
    predicted: NDArray[np.bool_],
    free: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    valid: NDArray[np.bool_],
    voxel_ml: float,
) -> list[float]:
    """The Dice of one class by each candidate, from the voxels of its components."""
    num_true = int(np.count_nonzero(truth & valid))
    box = box_of(predicted)
    if box is None:
        return [VoxelCounts(0, 0, num_true).dice] * len(CANDIDATES)
    counts = {}
    for fill in (False, True):
        mask = with_filled_holes(predicted[box], free[box]) if fill else predicted[box]
        numbers, sizes = components(mask)
        inside = valid[box]
        counted = np.bincount(numbers[inside], minlength=len(sizes))
        both = np.bincount(numbers[inside & truth[box]], minlength=len(sizes))
        counts[fill] = sizes, counted, both
    values = []
    for steps in CANDIDATES:
        sizes, counted, both = counts[steps.fill_holes]
        keep = steps.kept(sizes, voxel_ml)
        values.append(VoxelCounts(int(both[keep].sum()), int(counted[keep].sum()), num_true).dice)
    return values


def choose(trials: Sequence[CaseTrial], names: Sequence[str]) -> Choice:
    """Choose the post-processing of the classes or regions; see the rule at the top of this module.

    Args:
        trials: of all cases.
        names: of the outputs.
    """
    dice = np.stack([trial.dice for trial in trials])  # (cases, 2, candidates, R)
    smallest_ml = [_smallest([trial.smallest_ml[index] for trial in trials]) for index in range(len(names))]
    means = np.array(
        [[[nanmean(list(dice[:, k, c, r])) for r in range(len(names))] for c in range(len(CANDIDATES))] for k in (0, 1)]
    )
    plain = CANDIDATES.index(Steps())
    before, with_foreground = means[0, plain], means[1, plain]
    foreground = (
        len(names) > 1
        and nanmean(list(with_foreground)) - nanmean(list(before)) >= MIN_GAIN
        and not (with_foreground < before).any()
    )
    taken = [_of_class(means[int(foreground), :, index], smallest_ml[index]) for index in range(len(names))]
    steps = {name: one for name, one in zip(names, taken, strict=True) if one != Steps()}
    chosen = PostProcessing(bool(foreground), steps)
    return Choice(chosen, tuple(names), dice[:, 0, plain], dice_with(trials, names, chosen))


def dice_with(trials: Sequence[CaseTrial], names: Sequence[str], postprocessing: PostProcessing) -> NDArray[np.float64]:
    """The Dice of cases with a post-processing, (cases, R).

    Args:
        trials: of the cases.
        names: of the outputs.
        postprocessing: a result of `choose`: its steps are among `CANDIDATES`.
    """
    places = [CANDIDATES.index(postprocessing.steps.get(name, Steps())) for name in names]
    foreground = int(postprocessing.largest_foreground)
    return np.stack([trial.dice[foreground, places, np.arange(len(names))] for trial in trials])


def _of_class(means: NDArray[np.float64], smallest_ml: float) -> Steps:
    """The steps of one class: the one that gains most, and then another kind if it gains too.

    Args:
        means: mean Dice of each candidate.
        smallest_ml: its smallest volume in a label. Components that are as large are never removed by their size.
    """
    current = Steps()
    for _ in range(2):
        more = [steps for steps in CANDIDATES if _extends(steps, current) and steps.smallest_ml < smallest_ml]
        best = max(more, key=lambda steps: means[CANDIDATES.index(steps)], default=current)
        if not means[CANDIDATES.index(best)] - means[CANDIDATES.index(current)] >= MIN_GAIN:
            break
        current = best
    return current


def _extends(steps: Steps, current: Steps) -> bool:
    """Tell whether steps are the current ones and one more kind."""
    if steps.fill_holes and not current.fill_holes:
        return replace(steps, fill_holes=False) == current
    removes, removed = replace(steps, fill_holes=False), replace(current, fill_holes=False)
    return steps.fill_holes == current.fill_holes and removed == Steps() and removes != Steps()


def _smallest_component(truth: NDArray[np.bool_]) -> int:
    """The voxels of the smallest component; 0 without any."""
    return int(min(components(truth)[1][1:], default=0))


def _smallest(volumes: Sequence[float]) -> float:
    return min((volume for volume in volumes if volume > 0), default=0.0)
