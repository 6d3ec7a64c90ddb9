"""Pooled cross-validation: each case once in each repetition, scored by the run that did not see it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

from fusionseg.inference.comparison.layout import remark_notes, unique_names
from fusionseg.inference.comparison.rows import Comparison, Row
from fusionseg.inference.comparison.run_summary import RunSummary
from fusionseg.inference.statistics.scores import CaseScore, PooledGroup, PooledRow, missing_cells
from fusionseg.runs.cases.split_file import NO_VALIDATION, plain_split
from fusionseg.runs.evaluations import read_scores
from fusionseg.runs.json_files import JsonObject
from fusionseg.runs.paths import SPLIT
from fusionseg.utils.errors import UserError, some_of
from fusionseg.utils.tables import counted

_MAX_NAMED = 3


@dataclass(frozen=True)
class Pooled:
    """Pooled scores of the rows of a comparison."""

    weights: str
    """ "last" or "best"."""
    groups: list[PooledGroup]
    notes: list[str]
    """Sentences about runs and cases that are not in the statistics, and about how the runs were evaluated."""


def pool(comparison: Comparison) -> Pooled:
    """Collect the scores of all cases from the evaluations of the runs.

    Args:
        comparison: the runs, grouped into rows.

    Raises:
        UserError: no run has a usable evaluation, two runs of one row and seed scored the same case, or runs on one
            data set were evaluated with different parameters of a metric.
    """
    notes = [f"left out: {problem}" for problem in comparison.damaged]
    problems: list[str] = []
    groups: dict[tuple[str, str], PooledGroup] = {}
    missing: list[RunSummary] = []
    for table in comparison.tables:
        names = unique_names(table)
        for row, name, data_set in zip(table.rows, names, table.data_names(), strict=True):
            runs = [run for run in row.runs if run.task.evaluation == "masks"]
            missing += [run for run in runs if run.evaluation is None and NO_VALIDATION not in run.marks]
            scores = [score for run in runs for score in _scores(run, notes)]
            notes += remark_notes(runs, marks=True)
            problems += _repeated(scores)
            if scores:
                group = groups.setdefault((table.task, row.data.key), PooledGroup(table.task, data_set, []))
                group.rows.append(PooledRow(name, row, tuple(scores)))
    notes += _missing_notes(missing, comparison.weights)
    if not groups:
        raise UserError(["none of the runs has scores of cases that it did not see", *notes])
    found = []
    for group in groups.values():
        recorded, differing = _recorded_definitions([row.row for row in group.rows])
        problems += differing
        found.append(PooledGroup(group.task, group.data_set, group.rows, recorded))
    if problems:
        raise UserError(problems)
    for group in found:
        notes += _notes(group)
    return Pooled(comparison.weights, found, list(dict.fromkeys(notes)))


def _scores(run: RunSummary, notes: list[str]) -> list[CaseScore]:
    """The scores of a run. Notes are added about cases without usable scores."""
    if run.evaluation is None:
        return []
    scores = read_scores(run.evaluation)
    own = {score.case for score in scores}
    unseen = {score.case for score in scores if score.trained_on == "no"}
    if left_out := len(own - unseen):
        notes.append(
            f"{run.name}: {counted(left_out, 'case')} left out, as the run was trained on them, or as it is not known"
            " whether it was"
        )
    # An evaluation that records its request found the validation cases by their content; they may be renamed by now.
    if run.evaluation_request is None:
        validation = {str(case.get("name")) for case in plain_split(run.evaluation.parent).get("validation") or ()}
        if others := len(unseen - validation):
            notes.append(
                f"{run.name}: {counted(others, 'case')} left out, as its {SPLIT} does not name them as validation cases"
            )
        unseen &= validation
    repetition, path = repetition_of(run), str(run.path.resolve())
    return [
        CaseScore(run.name, path, repetition, run.fold, score.case, score.label, score.metrics)
        for score in scores
        if score.case in unseen
    ]


def _missing_notes(missing: Sequence[RunSummary], weights: str) -> list[str]:
    """A note about runs without an evaluation, with the command that makes them."""
    if not missing:
        return []
    folders = " ".join(dict.fromkeys(shlex.quote(str(run.path.parent)) for run in missing))
    option = " --checkpoint best" if weights == "best" else ""
    return [
        f"{some_of([run.name for run in missing], _MAX_NAMED)}: left out, without an evaluation of these weights;"
        f" fusionseg evaluate {folders}{option} makes it"
    ]


def _recorded_definitions(rows: Sequence[Row]) -> tuple[dict[str, JsonObject], list[str]]:
    """The definitions of the metrics that the evaluations recorded, and messages about those that differ."""
    found: dict[str, JsonObject] = {}
    runs: dict[str, dict[str, list[str]]] = {}
    for run in (run for row in rows for run in row.runs):
        for metric, definition in run.evaluation_definitions.items():
            if isinstance(definition, dict):
                found.setdefault(metric, definition)
                parameters = json.dumps(definition.get("parameters") or {}, sort_keys=True)
                runs.setdefault(metric, {}).setdefault(parameters, []).append(run.name)
    problems = [
        f"{metric}: was evaluated with different parameters, "
        + " and ".join(f"{values} ({some_of(names, _MAX_NAMED)})" for values, names in by_value.items())
        + "; evaluate these runs with the same settings, or name only runs with the same ones"
        for metric, by_value in runs.items()
        if len(by_value) > 1
    ]
    return found, problems


def repetition_of(run: RunSummary) -> str:
    """The repetition of the experiment that a run belongs to: its seed, and the seed that drew the folds if not 0.

    Args:
        run: the run.
    """
    drawn = run.fold.partition(" (")[2].rstrip(")")
    return f"seed {run.config.get('seed')}" + (f", {drawn}" if drawn else "")


def _repeated(scores: list[CaseScore]) -> list[str]:
    """Messages about cases that two runs of one repetition scored."""
    runs: dict[tuple[str, str], dict[str, None]] = {}
    for score in scores:
        runs.setdefault((score.repetition, score.case), {})[score.path] = None
    twice: dict[tuple[str, ...], list[str]] = {}
    for (_, case), paths in runs.items():
        if len(paths) > 1:
            twice.setdefault(tuple(paths), []).append(case)
    return [
        f"{' and '.join(paths)}: scored the same cases with the same configuration and seed"
        f" ({some_of(cases, _MAX_NAMED)}), and each case counts once; name only one of these runs"
        for paths, cases in twice.items()
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
    return [*notes, *_missing_values(group)]


def _missing_values(group: PooledGroup) -> list[str]:
    """Notes about metrics without a penalty that some rows have no value of: classes that their networks missed."""
    metrics: dict[tuple[tuple[int, ...], int], list[str]] = {}
    for metric in group.metrics if len(group.rows) > 1 else ():
        definition = group.definition(metric)
        if definition is None or not definition.is_penalised:
            missing, total = missing_cells(group.rows, metric)
            if any(missing):
                metrics.setdefault((tuple(missing), total), []).append(metric)
    return [
        f"{', '.join(names)}: "
        + ", ".join(f"{row.name} has no value of {count}" for row, count in zip(group.rows, missing, strict=True))
        + f" of the {total} classes of cases of {group.data_set}, where another row has one; paired tests, ranks and"
        " the choice of the best row leave such a class of a case out in all compared rows"
        for (missing, total), names in metrics.items()
    ]


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
