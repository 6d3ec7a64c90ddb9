"""The scores of an evaluation of a segmentation, by case, as its summary holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

from fusionseg.metrics.definitions import definition_of, title_and_digits
from fusionseg.runs.evaluations import NOT_METRICS
from fusionseg.runs.json_files import is_number
from fusionseg.utils.means import nanmean

SHOWN_FIRST = ("dice", "hd95_mm")
"""Metrics with a chart, and with columns in the table of cases."""


@dataclass(frozen=True)
class CaseScores:
    """The scores of a case."""

    name: str
    anchor: str
    """The id of its row in a page."""
    rows: Sequence[Mapping[str, Any]]
    """One row for each class, as in the table of cases."""

    def values(self, metric: str) -> dict[str, float]:
        """The values of a metric by class; nan where a class has none.

        Args:
            metric: a column of the table of cases.
        """
        return {str(row["label"]): _value(row.get(metric)) for row in self.rows}

    @property
    def dice(self) -> float:
        """The mean Dice over the classes; nan if no class has one."""
        return nanmean(list(self.values("dice").values()))


def cases_of(summary: Mapping[str, Any]) -> list[CaseScores]:
    """The scores of all cases, in the order of the evaluation.

    Args:
        summary: of an evaluation of a segmentation.
    """
    by_case: dict[str, list[Mapping[str, Any]]] = {}
    for row in summary.get("scores") or ():
        by_case.setdefault(str(row["case"]), []).append(row)
    return [CaseScores(name, f"case{index}", rows) for index, (name, rows) in enumerate(by_case.items())]


def metrics_of(cases: Sequence[CaseScores]) -> list[str]:
    """The metrics that the table of cases has, in its order.

    Args:
        cases: all cases.
    """
    columns = dict.fromkeys(key for case in cases for row in case.rows for key in row)
    return [key for key in columns if key not in NOT_METRICS]


def metric_texts(metric: str) -> tuple[str, int]:
    """The title of a metric in tables, and its decimal places.

    Args:
        metric: its name in files.
    """
    return title_and_digits(metric, definition_of(metric))


def _value(value: Any) -> float:
    return float(value) if is_number(value) else nan
