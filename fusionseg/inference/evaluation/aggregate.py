"""Statistics of an evaluation over its cases, micro means over their voxels, and the tables of lesions and branches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fusionseg.config.training.evaluation import EvaluateConfig
from fusionseg.inference.evaluation.measuring import Score
from fusionseg.inference.evaluation.results import mean_and_deviation
from fusionseg.metrics.overlap import VoxelCounts
from fusionseg.runs.evaluations import BRANCHES, LESIONS
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


def detail_tables(settings: EvaluateConfig) -> list[str]:
    """Names of the tables that an evaluation has because of its settings.

    Args:
        settings: the section `evaluate`.
    """
    asked = {LESIONS: settings.lesions, BRANCHES: settings.vessels}
    return [name for name, classes in asked.items() if classes]


def detail_rows(scores: Sequence[Score], settings: EvaluateConfig) -> dict[str, list[dict[str, Any]]]:
    """The rows of each table of `detail_tables`, by the name of its file. A table can have no row.

    Args:
        scores: of all cases.
        settings: the section `evaluate`.
    """
    rows = {LESIONS: [row for score in scores for row in _lesions(score)]}
    rows[BRANCHES] = [row for score in scores for row in _branches(score)]
    return {name: rows[name] for name in detail_tables(settings)}


def _lesions(score: Score) -> list[dict[str, Any]]:
    """Rows of the lesions of a class in a case, numbered from 1 in each mask."""
    rows = []
    numbers = {True: 0, False: 0}
    for lesion in score.lesions:
        numbers[lesion.is_true] += 1
        x, y, z = lesion.centre
        rows.append(
            {
                "case": score.case,
                "label": score.label,
                "mask": "true" if lesion.is_true else "predicted",
                "lesion": numbers[lesion.is_true],
                "volume_ml": lesion.volume_ml,
                "x": x,
                "y": y,
                "z": z,
                "matched": _yes_or_no(lesion.is_matched),
                "iou": lesion.iou,
                "dice": lesion.dice,
            }
        )
    return rows


def _branches(score: Score) -> list[dict[str, Any]]:
    """Rows of the branches of a class in a case, numbered from 1."""
    return [
        {
            "case": score.case,
            "label": score.label,
            "branch": number,
            "voxels": branch.voxels,
            "diameter_mm": branch.diameter_mm,
            "covered": branch.covered,
            "found": _yes_or_no(branch.is_found),
        }
        for number, branch in enumerate(score.branches, start=1)
    ]


def _yes_or_no(answer: bool) -> str:
    return "yes" if answer else "no"
