"""Pooled cross-validation: each case once in each repetition, scored by the run that did not see it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isnan, nan
from statistics import fmean
from typing import Any

from fusionseg.inference.comparison.layout import unique_names
from fusionseg.inference.comparison.rows import Comparison, Row
from fusionseg.inference.comparison.run_summary import RunSummary
from fusionseg.runs.cases.split_file import plain_split
from fusionseg.runs.evaluations import read_scores
from fusionseg.runs.paths import SPLIT
from fusionseg.utils.errors import UserError, some_of
from fusionseg.utils.tables import counted

_MAX_NAMED = 3


@dataclass(frozen=True)
class CaseScore:
    """The scores of one class, or region, in one case, by a run that did not train on the case."""

    run: str
    repetition: str
    """The seed of the run, and the seed that drew the folds unless it is 0."""
    fold: str
    case: str
    label: str
    metrics: Mapping[str, float]
    """nan where a metric is not defined."""


@dataclass(frozen=True)
class PooledRow:
    """The scores of one configuration on one data set, over all of its folds and seeds."""

    name: str
    row: Row
    scores: tuple[CaseScore, ...]

    @cached_property
    def cases(self) -> list[str]:
        """The names of the cases, sorted."""
        return sorted({score.case for score in self.scores})

    @cached_property
    def labels(self) -> list[str]:
        """The names of the classes or regions, in their order."""
        return list(dict.fromkeys(score.label for score in self.scores))

    @cached_property
    def metrics(self) -> list[str]:
        """The names of the metrics, in the order of cases.csv."""
        return list(dict.fromkeys(name for score in self.scores for name in score.metrics))

    @cached_property
    def repetitions(self) -> list[str]:
        return sorted({score.repetition for score in self.scores})

    @cached_property
    def fold_of(self) -> dict[str, str]:
        """The fold of each case; the fold of its first repetition, if it is in several."""
        return {score.case: score.fold for score in reversed(self.scores)}

    def by_case(self, metric: str, *, label: str | None = None, repetition: str | None = None) -> dict[str, float]:
        """The value of a metric for each case, sorted by case; nan where no class of the case has one.

        The mean over the classes is taken first, then the mean over the repetitions. So each case has one value,
        however many seeds were trained.

        Args:
            metric: name of the metric.
            label: one class alone; None takes the mean over the classes that have a value.
            repetition: one repetition alone; None takes the mean over those that have a value.
        """
        values: dict[str, dict[str, list[float]]] = {}
        for score in self.scores:
            if label in (None, score.label) and repetition in (None, score.repetition):
                of_case = values.setdefault(score.case, {})
                of_case.setdefault(score.repetition, []).append(score.metrics.get(metric, nan))
        return {case: _mean(map(_mean, values[case].values())) for case in sorted(values)}

    def by_repetition(self, metric: str) -> dict[str, float]:
        """The mean over the cases for each repetition."""
        return {name: _mean(self.by_case(metric, repetition=name).values()) for name in self.repetitions}

    def by_fold(self, metric: str) -> dict[str, float]:
        """The mean over the cases of each fold, of values that are already averaged over the repetitions."""
        groups: dict[str, list[float]] = {}
        for case, value in self.by_case(metric).items():
            groups.setdefault(self.fold_of[case], []).append(value)
        return {fold: _mean(groups[fold]) for fold in sorted(groups)}


@dataclass(frozen=True)
class PooledGroup:
    """The rows of one task on one data set. Only rows of one group are compared with each other."""

    task: str
    data_set: str
    rows: list[PooledRow]

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(metric for row in self.rows for metric in row.metrics))


@dataclass(frozen=True)
class Pooled:
    """Pooled scores of the rows of a comparison."""

    weights: str
    """ "last" or "best"."""
    groups: list[PooledGroup]
    notes: list[str]
    """Sentences about runs and cases that are not in the statistics."""


def pool(comparison: Comparison) -> Pooled:
    """Collect the scores of all cases from the evaluations of the runs.

    Args:
        comparison: the runs, grouped into rows.

    Raises:
        UserError: no run has a usable evaluation, or two runs of one row and seed scored the same case.
    """
    notes = [f"left out: {problem}" for problem in comparison.damaged]
    problems: list[str] = []
    groups: dict[tuple[str, str], PooledGroup] = {}
    for table in comparison.tables:
        names = unique_names(table)
        for row, name, data_set in zip(table.rows, names, table.data_names(), strict=True):
            scores = _scores(row, notes)
            problems += _repeated(row, scores)
            if scores:
                group = groups.setdefault((table.task, row.data.key), PooledGroup(table.task, data_set, []))
                group.rows.append(PooledRow(name, row, tuple(scores)))
    if not groups:
        raise UserError(["none of the runs has scores of cases that it did not see", *notes])
    if problems:
        raise UserError(problems)
    for group in groups.values():
        notes += _notes(group)
    return Pooled(comparison.weights, list(groups.values()), notes)


def _scores(row: Row, notes: list[str]) -> list[CaseScore]:
    """The scores of a row. Notes are added about runs and cases without usable scores."""
    found: list[CaseScore] = []
    missing: list[str] = []
    for run in row.runs:
        if run.task.evaluation != "masks":
            continue
        if run.evaluation is None:
            missing.append(run.name)
            continue
        validation = {str(case.get("name")) for case in plain_split(run.evaluation.parent).get("validation") or ()}
        scores = read_scores(run.evaluation)
        usable = [score for score in scores if score.case in validation and score.trained_on == "no"]
        if left_out := len({score.case for score in scores}) - len({score.case for score in usable}):
            notes.append(
                f"{run.name}: {counted(left_out, 'case')} left out, as the run was trained on them, or as its"
                f" {SPLIT} does not say that it was not"
            )
        found += [
            CaseScore(run.name, repetition_of(run), run.fold, score.case, score.label, score.metrics)
            for score in usable
        ]
    if missing:
        notes.append(
            f"{some_of(missing, _MAX_NAMED)}: left out, without an evaluation of these weights; fusionseg evaluate"
            f" {row.runs[0].path.parent} makes it"
        )
    return found


def repetition_of(run: RunSummary) -> str:
    """The repetition of the experiment that a run belongs to: its seed, and the seed that drew the folds if not 0.

    Args:
        run: the run.
    """
    drawn = run.fold.partition(" (")[2].rstrip(")")
    return f"seed {run.config.get('seed')}" + (f", {drawn}" if drawn else "")


def _repeated(row: Row, scores: list[CaseScore]) -> list[str]:
    """Messages about cases that two runs of one repetition scored."""
    runs: dict[tuple[str, str], dict[str, None]] = {}
    for score in scores:
        runs.setdefault((score.repetition, score.case), {})[score.run] = None
    twice: dict[tuple[str, ...], list[str]] = {}
    for (_, case), names in runs.items():
        if len(names) > 1:
            twice.setdefault(tuple(names), []).append(case)
    return [
        f"{' and '.join(names)}: scored the same cases with the same configuration and seed"
        f" ({some_of(cases, _MAX_NAMED)}), and each case counts once; name only one of these runs"
        for names, cases in twice.items()
    ]


def _notes(group: PooledGroup) -> list[str]:
    """Notes about rows that do not have all cases, or not the same ones."""
    notes = []
    for row in group.rows:
        total = len(row.row.data.cases)
        if len(row.cases) < total:
            folds = ", ".join(sorted({score.fold for score in row.scores}))
            notes.append(
                f"{row.name}: {len(row.cases)} of the {total} cases of {group.data_set} are scored (fold {folds})"
            )
        pairs = {(score.repetition, score.case) for score in row.scores}
        if len(pairs) < len(row.repetitions) * len(row.cases):
            notes.append(f"{row.name}: some cases were not scored with every seed; their means are over fewer seeds")
    if len({tuple(row.cases) for row in group.rows}) > 1:
        notes.append(
            f"the rows on {group.data_set} are not of the same cases: paired tests and ranks are over the cases that"
            " rows share"
        )
    return notes


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not isnan(value)]
    return fmean(known) if known else nan


def pooled_rows(pooled: Pooled) -> list[dict[str, Any]]:
    """The rows of pooled.csv: the score of each case and class in each repetition, with the run that gave it.

    Args:
        pooled: the scores.
    """
    metrics = list(dict.fromkeys(metric for group in pooled.groups for metric in group.metrics))
    return [
        {
            "data_set": group.data_set,
            "name": row.name,
            "run": score.run,
            "repetition": score.repetition,
            "fold": score.fold,
            "case": score.case,
            "label": score.label,
            **{metric: score.metrics.get(metric, nan) for metric in metrics},
        }
        for group in pooled.groups
        for row in group.rows
        for score in row.scores
    ]
