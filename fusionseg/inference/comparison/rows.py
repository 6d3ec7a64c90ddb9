"""Rows of a table over many runs: one for each configuration and data set, over its seeds and folds."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fusionseg.config.parts.task import built_in_tasks
from fusionseg.inference.comparison.ensembles import summarise_further
from fusionseg.inference.comparison.run_summary import (
    REPEATED,
    VALIDATED_ON_TRAINING_CASES,
    DataIdentity,
    RunSummary,
    summarise_run,
)
from fusionseg.metrics.definitions import definition_of, title_and_digits
from fusionseg.runs.paths import run_folders
from fusionseg.runs.records import has_finished
from fusionseg.utils.errors import UserError, some_of

COST = ("parameters", "steps", "samples_per_s", "mfu", "roofline", "memory_gb", "total_s", "gpu_hours")
"""Metrics of the cost of a run, which are the last columns of the table."""


@dataclass(frozen=True)
class Spread:
    """The mean and the spread of a metric over the runs that have it."""

    mean: float
    deviation: float | None
    """Standard deviation of the sample; None for one run."""
    low: float
    high: float
    count: int


@dataclass
class Row:
    """The runs of one configuration on one data set."""

    settings: dict[str, Any]
    data: DataIdentity
    runs: list[RunSummary] = field(default_factory=list)

    def spread(self, metric: str) -> Spread | None:
        """The spread of a metric; None if no run has it."""
        known = [run.metrics[metric] for run in self.runs if metric in run.metrics]
        if not known:
            return None
        return Spread(fmean(known), stdev(known) if len(known) > 1 else None, min(known), max(known), len(known))

    @property
    def folds(self) -> list[str]:
        return sorted({run.fold for run in self.runs})

    @property
    def marks(self) -> list[str]:
        return sorted({mark for run in self.runs for mark in run.marks})

    @property
    def is_validated_on_training_cases(self) -> bool:
        return VALIDATED_ON_TRAINING_CASES in self.marks

    def not_finished(self) -> dict[str, int]:
        """Count the runs that have not finished, by status."""
        states = [run.status for run in self.runs if not has_finished(run.status)]
        return {state: states.count(state) for state in dict.fromkeys(states)}


@dataclass(frozen=True)
class TaskTable:
    """The rows of one task."""

    task: str
    settings: list[str]
    """The keys whose values differ between the configurations."""
    metrics: list[str]
    rows: list[Row]

    @property
    def data_differ(self) -> bool:
        return len({row.data.key for row in self.rows}) > 1

    @property
    def folds_differ(self) -> bool:
        return len({tuple(row.folds) for row in self.rows}) > 1

    def data_names(self) -> list[str]:
        """The name of each row's data set: the shortest form that tells the data sets apart."""
        forms = (
            lambda data: data.name,
            lambda data: f"{data.name}, {len(data.cases)} cases" if data.cases else data.root,
            lambda data: f"{data.name}: {some_of(data.labels)}",
        )
        distinct = len({row.data.key for row in self.rows})
        for form in forms:
            names = [form(row.data) for row in self.rows]
            if len(set(names)) == distinct:
                return names
        return [f"{row.data.name} {row.data.key[:8]}" for row in self.rows]


@dataclass(frozen=True)
class Comparison:
    """The tables of a comparison: segmentations and pre-trainings apart."""

    weights: str
    """"last" or "best": the validation that the metrics are of."""
    tables: list[TaskTable]
    damaged: list[str]
    """A message for each run that could not be read."""
    baseline: str | None = None
    """The name of the row that the others are compared with, pair by pair (`paired.with_baseline`)."""

    @property
    def rows(self) -> list[Row]:
        return [row for table in self.tables for row in table.rows]


def compare(
    paths: Sequence[Path], weights: str = "last", *, ensembles: bool = False, postprocessed: bool = False
) -> Comparison:
    """Compare runs.

    Args:
        paths: run folders, and folders of run folders.
        weights: "last" takes the metrics of each run's last validation, "best" those of its best one.
        ensembles: add rows of the evaluations that averaged several runs.
        postprocessed: add rows of the evaluations of masks with post-processing.

    Raises:
        UserError: a path holds no run, or no run has a validation.
    """
    runs: list[RunSummary] = []
    damaged: list[str] = []
    for folder in run_folders(paths):
        try:
            runs.append(summarise_run(folder, weights))
        except UserError as error:
            damaged += error.problems
    for run in list(runs):
        try:
            runs += summarise_further(run, weights, ensembles=ensembles, postprocessed=postprocessed)
        except UserError as error:
            damaged += [f"an ensemble of {run.path}: {problem}" for problem in error.problems]
    if not any(run.metrics for run in runs):
        none = f"{', '.join(map(str, paths))}: none of the {len(runs) + len(damaged)} runs has a validation to compare"
        raise UserError([none, *damaged])
    tables = []
    for task in dict.fromkeys((*built_in_tasks(), *(run.task for run in runs))):
        own = [run for run in runs if run.task == task]
        if own:
            tables.append(_task_table(task.name, own))
    return Comparison(weights, tables, damaged)


def _task_table(task: str, runs: Sequence[RunSummary]) -> TaskTable:
    data = unify_data_sets(runs)
    rows: dict[tuple[str, str], Row] = {}
    for run in runs:
        settings = {key: value for key, value in run.config.items() if key not in REPEATED}
        row = rows.setdefault((run.key, data[run.path].key), Row(settings, data[run.path]))
        if settings.get("init_from") != row.settings.get("init_from"):  # each fold has its own pre-training
            starts = [str(settings["init_from"]), str(row.settings["init_from"])]
            row.settings["init_from"] = os.path.commonprefix(starts) + "..."  # noqa: RUF071 - for a text, not a path
        row.runs.append(run)
    found = list(rows.values())
    keys = distinguishing_keys([row.settings for row in found])
    if not keys and len({row.data.key for row in found}) == 1:
        keys = ["model.name"]
    return TaskTable(task, keys, _ordered_metrics(runs), found)


def _ordered_metrics(runs: Sequence[RunSummary]) -> list[str]:
    """The names of all metrics, grouped by grid: first the geometry of the files, last the cost."""
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    grids: dict[str, int] = {}
    for name in names:
        grids.setdefault(_grid(name), len(grids))
    ordered = sorted((name for name in names if name not in COST), key=lambda name: grids[_grid(name)])
    return ordered + [name for name in COST if name in names]


def _grid(metric: str) -> str:
    return metric.partition(" (")[2]


def unify_data_sets(runs: Sequence[RunSummary]) -> dict[Path, DataIdentity]:
    """Find the data set of each run; runs on the same data set get the same object.

    Runs are on the same data set if the union of their training and validation cases is the same. This holds for all
    folds. A data set in which cases were added, changed or left out is another one. A run that trains on a part of the
    cases (`data.train_cases`) does not record the others. For such runs of one configuration, a shared case is enough.

    Args:
        runs: runs of one task.

    Returns:
        The data set by run folder.
    """
    found: dict[Path, DataIdentity] = {}
    # A run that has not started to train has no split and takes the data set of another run. It therefore comes last.
    for run in sorted(runs, key=lambda run: not run.data.cases and not run.metrics):
        same = (
            other
            for before in runs
            if (other := found.get(before.path)) is not None and _is_on_same_data(run, before, other)
        )
        found[run.path] = next(same, run.data)
    return found


def _is_on_same_data(run: RunSummary, before: RunSummary, data: DataIdentity) -> bool:
    """Tell whether a run is on the data set of another run, although the recorded cases are not quite the same."""
    if before.key != run.key:
        return False
    if not run.data.cases:
        return not run.metrics and data.root == run.data.root
    of_a_part = run.config.get("data.train_cases") is not None
    return of_a_part and data.labels == run.data.labels and bool(data.cases & run.data.cases)


def distinguishing_keys(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the keys whose values differ between configurations.

    Networks of different names have different keys: `model.name` stands for all of these. Another key is listed if its
    values differ between configurations whose section has the same name.
    """
    keys = list(dict.fromkeys(key for one in settings for key in one))
    found = []
    for key in keys:
        name = f"{key.split('.')[0]}.name"
        values: dict[str, set[str]] = {}
        for one in settings:
            group = json.dumps(one.get(name)) if key != name else ""
            values.setdefault(group, set()).add(json.dumps(one.get(key)))
        if any(len(different) > 1 for different in values.values()):
            found.append(key)
    return found


def higher_is_better(metric: str) -> bool | None:
    """Tell whether a higher value of a metric means a better network; None if there is no better direction.

    Args:
        metric: a column of the table.
    """
    definition = definition_of(metric)
    return None if definition is None else definition.higher_is_better


def digits_of(metric: str) -> int:
    """The decimal places of a metric in the table."""
    if metric in COST:
        return 2
    return title_and_digits(metric, definition_of(metric))[1]
