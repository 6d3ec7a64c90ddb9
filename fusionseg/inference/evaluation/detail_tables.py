"""The tables of lesions and of branches of an evaluation, beside its table of cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fusionseg.config.training.evaluation import EvaluateConfig
from fusionseg.inference.evaluation.measuring import Score
from fusionseg.runs.evaluations import BRANCHES, LESIONS


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
