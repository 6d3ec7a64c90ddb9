"""Paired differences between the rows of a comparison: runs of the same seed and fold, one of each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt
from statistics import fmean, stdev

from fusionseg.inference.comparison.layout import row_name
from fusionseg.inference.comparison.rows import COST, Comparison, Row, TaskTable, digits_of
from fusionseg.inference.comparison.run_summary import OF_PRETRAINING
from fusionseg.utils.errors import UserError, suggest
from fusionseg.utils.tables import markdown_table

LEVEL = 0.95
"""Confidence of the interval."""


@dataclass(frozen=True)
class PairedDifference:
    """The mean of the differences of a metric, and its interval."""

    mean: float
    half_width: float | None
    """Half the width of the interval of Student's t at `LEVEL`; None for one pair."""
    pairs: int


def with_baseline(comparison: Comparison, name: str, *, must_exist: bool = True) -> Comparison:
    """Compare the other rows with a baseline, pair by pair.

    Args:
        comparison: the tables.
        name: the name of the baseline's runs without seed and fold, such as scratch for scratch-seed0.
        must_exist: refuse a name that no row has. Otherwise there are no differences.

    Raises:
        UserError: no row has this name.
    """
    names = [row_name(row) for row in comparison.rows]
    if must_exist and name not in names:
        raise UserError(f"--against: no runs are called {name!r} without seed and fold; {suggest(name, names)}")
    return replace(comparison, baseline=name)


def paired_difference(row: Row, baseline: Row, metric: str) -> PairedDifference | None:
    """The differences of a metric between a row and a baseline; None without a pair of runs that have the metric.

    The interval is that of a paired t-test (Student, 1908): it is about the variation of the seeds and folds that were
    run, with the same data and, unless they vary with the seed, the same pre-trainings.

    Args:
        row: the row.
        baseline: the row that is subtracted.
        metric: name of the metric.
    """
    ours, theirs = _values(row, metric), _values(baseline, metric)
    differences = [ours[key] - theirs[key] for key in ours if key in theirs]
    if not differences:
        return None
    count = len(differences)
    half_width = None
    if count > 1:
        from scipy.special import stdtrit  # scipy is slow to import

        half_width = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * stdev(differences) / sqrt(count)
    return PairedDifference(fmean(differences), half_width, count)


def baseline_of(table: TaskTable, row: Row, name: str) -> Row | None:
    """The row of the baseline on the same data set; None for the baseline itself, and where there is none."""
    if row_name(row) == name:
        return None
    return next((each for each in table.rows if row_name(each) == name and each.data.key == row.data.key), None)


def paired_markdown(comparison: Comparison) -> list[str]:
    """Format the differences from the baseline, one Markdown table for each task that has some."""
    return [f"{title}\n\n{markdown_table(cells)}" for title, cells in paired_cells(comparison)]


def paired_cells(comparison: Comparison) -> list[tuple[str, list[list[str]]]]:
    """The title and the cells, header first, of the differences from the baseline for each task that has some."""
    name, blocks = comparison.baseline, []
    if name is None:
        return []
    for table in comparison.tables:
        metrics = paired_metrics(table)
        body = []
        for row in table.rows:
            if (baseline := baseline_of(table, row, name)) is not None:
                found = [paired_difference(row, baseline, metric) for metric in metrics]
                pairs = max((each.pairs for each in found if each is not None), default=0)
                body.append([row_name(row), str(pairs), *map(_text, metrics, found, [pairs] * len(metrics))])
        if body and metrics:
            title = f"Difference from `{name}`, run by run, with the {LEVEL:.0%} interval of the mean:"
            blocks.append((title, [["name", "pairs", *metrics], *body]))
    return blocks


def paired_metrics(table: TaskTable) -> list[str]:
    """The metrics of a table that are results of the runs: neither cost nor the score of an earlier pre-training."""
    return [metric for metric in table.metrics if metric not in COST and OF_PRETRAINING not in metric]


def _values(row: Row, metric: str) -> Mapping[tuple[object, str], float]:
    """The values of a metric by seed and fold."""
    return {(run.config.get("seed"), run.fold): run.metrics[metric] for run in row.runs if metric in run.metrics}


def _text(metric: str, found: PairedDifference | None, pairs: int) -> str:
    if found is None:
        return "-"
    digits = digits_of(metric)
    some = f" ({found.pairs} of {pairs})" if found.pairs < pairs else ""
    if found.half_width is None:
        return f"{found.mean:+.{digits}f}{some}"
    low, high = found.mean - found.half_width, found.mean + found.half_width
    return f"{found.mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]{some}"
