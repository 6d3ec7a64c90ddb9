"""The statistics of pooled scores: intervals, spread over seeds and folds, tests against a baseline, ranks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isnan, nan
from typing import Any

import numpy as np

from fusionseg.inference.statistics.intervals import LEVEL, METHODS, Interval, mean_interval
from fusionseg.inference.statistics.paired_tests import PairedTest, holm, paired_test
from fusionseg.inference.statistics.pooled import Pooled
from fusionseg.inference.statistics.ranks import RankStability, rank_stability
from fusionseg.inference.statistics.resampling import RESAMPLES
from fusionseg.inference.statistics.scores import PooledGroup, PooledRow, has_same_cells, paired_values
from fusionseg.metrics.definitions import MetricDefinition
from fusionseg.runs.json_files import JsonObject
from fusionseg.utils.errors import UserError, suggest


@dataclass(frozen=True)
class MetricStatistics:
    """The statistics of one metric of one row."""

    cases: Interval
    """Mean over the cases, each averaged over its classes and seeds."""
    deviation: float
    """Standard deviation over the cases; nan for one case."""
    classes: dict[str, Interval]
    """The same for each class or region alone."""
    repetitions: dict[str, float]
    """The mean over the cases of each repetition (seed)."""
    over_repetitions: Interval
    folds: dict[str, float]
    """The mean over the cases of each fold, averaged over the repetitions."""
    over_folds: Interval
    test: PairedTest | None = None
    """The comparison with the baseline; None for the baseline itself, or without one."""
    p_holm: float = nan
    """p-value of the test after Holm's correction over the rows of this metric."""


@dataclass(frozen=True)
class RowStatistics:
    """The statistics of one row."""

    pooled: PooledRow
    metrics: dict[str, MetricStatistics]

    @property
    def name(self) -> str:
        return self.pooled.name


@dataclass(frozen=True)
class GroupStatistics:
    """The statistics of the rows on one data set."""

    task: str
    data_set: str
    rows: list[RowStatistics]
    ranks: dict[str, RankStability]
    """By metric; only for metrics with a direction, and for two rows or more with shared cases."""
    pooled: PooledGroup
    comparable: frozenset[str]
    """The metrics whose means of all rows are over the same cases."""

    def definition(self, metric: str) -> MetricDefinition | None:
        """The definition of a metric: the built-in one, or else the one that the evaluations recorded.

        Args:
            metric: its name.
        """
        return self.pooled.definition(metric)

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row.metrics))


@dataclass(frozen=True)
class Statistics:
    """The statistics of all rows."""

    weights: str
    """ "last" or "best"."""
    level: float
    seed: int
    baseline: str | None
    groups: list[GroupStatistics]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Plain values for statistics.json; nan stays nan."""
        return {
            "weights": self.weights,
            "level": self.level,
            "seed": self.seed,
            "resamples": RESAMPLES,
            "against": self.baseline,
            "methods": METHODS,
            "groups": [_group_json(group) for group in self.groups],
            "notes": self.notes,
        }


def analyse(pooled: Pooled, against: str | None = None, level: float = LEVEL, seed: int = 0) -> Statistics:
    """Compute the statistics of pooled scores.

    Args:
        pooled: the scores.
        against: the name of the baseline for the paired tests.
        level: the confidence of all intervals.
        seed: key of the resamples.

    Raises:
        UserError: no row has the name of the baseline.
    """
    names = [row.name for group in pooled.groups for row in group.rows]
    if against is not None and against not in names:
        raise UserError(f"--against: no row is called {against!r}; {suggest(against, names)}")
    groups = [_group_statistics(group, against, level, seed) for group in pooled.groups]
    return Statistics(pooled.weights, level, seed, against, groups, list(pooled.notes))


def shared_values(group: PooledGroup, metric: str) -> tuple[list[str], np.ndarray[Any, np.dtype[np.float64]]]:
    """The values of the cases that have one in all rows; see `paired_values`.

    Args:
        group: k rows.
        metric: name of the metric.

    Returns:
        The names of n cases, and the values (n, k).
    """
    columns = paired_values(group.rows, metric, group.definition(metric))
    cases = [case for case in columns[0] if not any(isnan(column.get(case, nan)) for column in columns)]
    return cases, np.array([[column[case] for column in columns] for case in cases]).reshape(len(cases), len(columns))


def _group_statistics(group: PooledGroup, against: str | None, level: float, seed: int) -> GroupStatistics:
    tests: dict[tuple[str, str], tuple[PairedTest, float]] = {}
    baseline = next((row for row in group.rows if row.name == against), None)
    if baseline is not None:
        others = [row for row in group.rows if row is not baseline]
        for metric in baseline.metrics:
            pairs = [paired_values([row, baseline], metric, group.definition(metric)) for row in others]
            found = [paired_test(ours, theirs, level, seed) for ours, theirs in pairs]
            adjusted = holm([test.p for test in found])
            tests |= {
                (row.name, metric): pair for row, pair in zip(others, zip(found, adjusted, strict=True), strict=True)
            }
    rows = [
        RowStatistics(
            row,
            {
                metric: _metric_statistics(row, metric, level, seed, *tests.get((row.name, metric), (None, nan)))
                for metric in row.metrics
            },
        )
        for row in group.rows
    ]
    ranks = {}
    for metric in group.metrics if len(rows) > 1 else ():
        definition = group.definition(metric)
        _, values = shared_values(group, metric)
        if definition is not None and definition.higher_is_better is not None and len(values) > 1:
            ranks[metric] = rank_stability(values, higher_is_better=definition.higher_is_better, level=level, seed=seed)
    comparable = (name for name in group.metrics if has_same_cells(group.rows, name, group.definition(name)))
    return GroupStatistics(group.task, group.data_set, rows, ranks, group, frozenset(comparable))


def _metric_statistics(
    row: PooledRow, metric: str, level: float, seed: int, test: PairedTest | None, p_holm: float
) -> MetricStatistics:
    values = np.array(list(row.by_case(metric).values()))
    known = values[~np.isnan(values)]
    repetitions, folds = row.by_repetition(metric), row.by_fold(metric)
    return MetricStatistics(
        cases=mean_interval(values, level, seed),
        deviation=float(known.std(ddof=1)) if len(known) > 1 else nan,
        classes={
            label: mean_interval(list(row.by_case(metric, label=label).values()), level, seed) for label in row.labels
        },
        repetitions=repetitions,
        over_repetitions=mean_interval(list(repetitions.values()), level, seed),
        folds=folds,
        over_folds=mean_interval(list(folds.values()), level, seed),
        test=test,
        p_holm=p_holm,
    )


def _group_json(group: GroupStatistics) -> dict[str, Any]:
    names = [row.name for row in group.rows]
    return {
        "task": group.task,
        "data_set": group.data_set,
        "definitions": _definitions_json(group.pooled),
        "rows": [
            {
                "name": row.name,
                "settings": row.pooled.row.settings,
                "runs": [str(run.path) for run in row.pooled.row.runs],
                "cases": len(row.pooled.cases),
                "cases_of_data_set": len(row.pooled.row.data.cases),
                "metrics": {name: _metric_json(found) for name, found in row.metrics.items()},
            }
            for row in group.rows
        ],
        "ranks": {metric: {"names": names, **asdict(found)} for metric, found in group.ranks.items()},
    }


def _definitions_json(group: PooledGroup) -> dict[str, JsonObject]:
    """The definition of each metric, with the parameters that the evaluations recorded."""
    return {
        metric: definition.to_json(group.recorded.get(metric, {}).get("parameters"))
        for metric in group.metrics
        if (definition := group.definition(metric)) is not None
    }


def _metric_json(found: MetricStatistics) -> dict[str, Any]:
    plain = asdict(found)
    test, p_holm = plain.pop("test"), plain.pop("p_holm")
    return {**plain, **({} if test is None else {"against": {**test, "p_holm": p_holm}})}
