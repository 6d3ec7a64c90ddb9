"""Statistics of an evaluation over its cases: means and deviations of the cases, and micro means over their voxels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fusionseg.inference.evaluation.measuring import Score
from fusionseg.inference.evaluation.results import mean_and_deviation
from fusionseg.metrics.overlap import VoxelCounts
from fusionseg.utils.means import nanmean

_FIRST = ("dice", "hd95_mm")


def summarise(scores: Sequence[Score]) -> dict[str, Any]:
    """Mean and standard deviation of each metric over the cases by class, and the mean over the classes.

    `micro` has the overlap of all voxels of all cases, in which a large structure counts more than a small one.

    Args:
        scores: of the cases that the means count, at least one.
    """
    further = list(scores[0].metrics)
    classes: dict[str, Any] = {}
    totals: list[VoxelCounts] = []
    for name in dict.fromkeys(score.label for score in scores):
        of_class = [score for score in scores if score.label == name]
        totals.append(_total(of_class))
        values = [{"dice": score.dice, "hd95_mm": score.hd95_mm, **score.metrics} for score in of_class]
        classes[name] = {
            **{metric: mean_and_deviation([case[metric] for case in values]) for metric in (*_FIRST, *further)},
            "micro": _micro(totals[-1]),
        }
        if not all(score.is_annotated for score in scores):
            classes[name]["annotated"] = sum(score.is_annotated for score in of_class)
    ignored = {score.case: score.voxels_ignored for score in scores if score.voxels_ignored}
    means = {
        metric: nanmean([of_class[metric]["mean"] for of_class in classes.values()]) for metric in (*_FIRST, *further)
    }
    return {
        "cases": len({score.case for score in scores}),
        **{metric: means[metric] for metric in _FIRST},
        "metrics": {metric: means[metric] for metric in further},
        "micro": _micro(sum(totals, VoxelCounts(0, 0, 0))),
        **({"ignored": {"cases": len(ignored), "voxels": sum(ignored.values())}} if ignored else {}),
        "classes": classes,
    }


def _total(scores: Sequence[Score]) -> VoxelCounts:
    """The voxels of a class summed over the cases that annotate it."""
    counts = (
        VoxelCounts(score.voxels_both, score.voxels_predicted, score.voxels_true)
        for score in scores
        if score.voxels_true is not None
    )
    return sum(counts, VoxelCounts(0, 0, 0))


def _micro(counts: VoxelCounts) -> dict[str, float]:
    return {
        "dice": counts.dice,
        "iou": counts.iou,
        "sensitivity": counts.sensitivity,
        "precision": counts.precision,
    }
