"""Scores of all cases by row, and the values of rows that are compared with each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isnan, nan

from fusionseg.inference.comparison.rows import Row
from fusionseg.metrics.definitions import MetricDefinition, definition_of, recorded_definition
from fusionseg.runs.json_files import JsonObject
from fusionseg.utils.means import nanmean


@dataclass(frozen=True)
class CaseScore:
    """The scores of one class, or region, in one case, by a run that did not train on the case."""

    run: str
    path: str
    """The folder of the run, which tells runs of one name apart."""
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

    def by_case(
        self,
        metric: str,
        *,
        label: str | None = None,
        repetition: str | None = None,
        keep: Callable[[CaseScore], bool] | None = None,
    ) -> dict[str, float]:
        """The value of a metric for each case, sorted by case; nan where no class of the case has one.

        The mean over the classes is taken first, then the mean over the repetitions. So each case has one value,
        however many seeds were trained.

        Args:
            metric: name of the metric.
            label: one class alone; None takes the mean over the classes that have a value.
            repetition: one repetition alone; None takes the mean over those that have a value.
            keep: tells which scores take part; None for all.
        """
        values: dict[str, dict[str, list[float]]] = {}
        for score in self.scores:
            chosen = label in (None, score.label) and repetition in (None, score.repetition)
            if chosen and (keep is None or keep(score)):
                of_case = values.setdefault(score.case, {})
                of_case.setdefault(score.repetition, []).append(score.metrics.get(metric, nan))
        return {case: nanmean(map(nanmean, values[case].values())) for case in sorted(values)}

    def by_repetition(self, metric: str) -> dict[str, float]:
        """The mean over the cases for each repetition."""
        return {name: nanmean(self.by_case(metric, repetition=name).values()) for name in self.repetitions}

    def by_fold(self, metric: str) -> dict[str, float]:
        """The mean over the cases of each fold, of values that are already averaged over the repetitions."""
        groups: dict[str, list[float]] = {}
        for case, value in self.by_case(metric).items():
            groups.setdefault(self.fold_of[case], []).append(value)
        return {fold: nanmean(groups[fold]) for fold in sorted(groups)}


@dataclass(frozen=True)
class PooledGroup:
    """The rows of one task on one data set. Only rows of one group are compared with each other."""

    task: str
    data_set: str
    rows: list[PooledRow]
    recorded: Mapping[str, JsonObject] = field(default_factory=dict)
    """The definitions of the metrics with their parameters, as the evaluations recorded them."""

    def definition(self, metric: str) -> MetricDefinition | None:
        """The definition of a metric: the built-in one, else the one that the evaluations recorded.

        Args:
            metric: its name.
        """
        if (built_in := definition_of(metric)) is not None or metric not in self.recorded:
            return built_in
        return recorded_definition(metric, self.recorded[metric])

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(metric for row in self.rows for metric in row.metrics))


def paired_values(
    rows: Sequence[PooledRow], metric: str, definition: MetricDefinition | None
) -> list[dict[str, float]]:
    """The value of each case in rows that are compared with each other; nan where a row has none.

    Without a penalty, as for distances, the class that a network misses has no value. The mean over the classes that it
    found would then reward the miss. So a class of a case takes part only if it has a value in all of the rows.

    Args:
        rows: k rows of one group.
        metric: name of the metric.
        definition: of the metric; None counts as one without a penalty.

    Returns:
        For each row, the values by case.
    """
    if definition is not None and definition.is_penalised:
        return [row.by_case(metric) for row in rows]
    key = _cell_key(rows)
    shared = frozenset[Cell].intersection(*(_known_cells(row, metric, key) for row in rows))
    return [row.by_case(metric, keep=lambda score: key(score) in shared) for row in rows]


def missing_cells(rows: Sequence[PooledRow], metric: str) -> tuple[list[int], int]:
    """Count the classes of cases that have no value in a row, but in another one.

    Args:
        rows: k rows of one group.
        metric: name of the metric.

    Returns:
        The number for each row, and the number of classes of cases that some row has.
    """
    key = _cell_key(rows)
    known = [_known_cells(row, metric, key) for row in rows]
    scored = [{key(score) for score in row.scores} for row in rows]
    anywhere = set().union(*known)
    missing = [len((anywhere & cells) - own) for own, cells in zip(known, scored, strict=True)]
    return missing, len(set().union(*scored))


def has_same_cells(rows: Sequence[PooledRow], metric: str, definition: MetricDefinition | None) -> bool:
    """Tell whether the means of rows are over the same cases and, without a penalty, over the same classes of them.

    Args:
        rows: rows of one group.
        metric: name of the metric.
        definition: of the metric; None counts as one without a penalty.
    """
    if definition is not None and definition.is_penalised:
        known = [{case for case, value in row.by_case(metric).items() if not isnan(value)} for row in rows]
        return all(cases == known[0] for cases in known)
    key = _cell_key(rows)
    return len({_known_cells(row, metric, key) for row in rows}) == 1


Cell = tuple[str, str, str]
"""Repetition, case and label."""


def _cell_key(rows: Sequence[PooledRow]) -> Callable[[CaseScore], Cell]:
    """The key by which scores of rows correspond; of rows with different seeds, all repetitions have one key."""
    if len({tuple(row.repetitions) for row in rows}) == 1:
        return lambda score: (score.repetition, score.case, score.label)
    return lambda score: ("", score.case, score.label)


def _known_cells(row: PooledRow, metric: str, key: Callable[[CaseScore], Cell]) -> frozenset[Cell]:
    """The keys of the scores that all have a value."""
    unknown = {key(score) for score in row.scores if isnan(score.metrics.get(metric, nan))}
    return frozenset({key(score) for score in row.scores} - unknown)
