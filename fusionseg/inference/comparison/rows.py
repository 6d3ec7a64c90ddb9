"""Rows of a table over many runs: one for each configuration and data set, over its seeds and folds."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fusionseg.runs.discovery import run_folders
from fusionseg.runs.summary import FINISHED, MEASURES, ON_TRAINED, REPEATED, DataIdentity, RunSummary, read_run
from fusionseg.utils.errors import UserError

MEASUREMENTS = ("parameters", "steps", "samples_per_s", "memory_gb", "total_s")


@dataclass(frozen=True)
class Spread:
    """A figure over the runs that know it."""

    mean: float
    deviation: float | None
    """Of the sample; None for one run."""
    low: float
    high: float
    count: int


@dataclass
class Row:
    """One configuration on one data set."""

    settings: dict[str, Any]
    data: DataIdentity
    runs: list[RunSummary] = field(default_factory=list)

    def spread(self, figure: str) -> Spread | None:
        """None if no run knows the figure."""
        known = [run.figures[figure] for run in self.runs if figure in run.figures]
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
    def has_seen_its_validation(self) -> bool:
        return ON_TRAINED in self.marks

    def ended_early(self) -> dict[str, int]:
        """The number of runs that have not come to their end, by status."""
        states = [run.status for run in self.runs if run.status not in FINISHED]
        return {state: states.count(state) for state in dict.fromkeys(states)}


@dataclass(frozen=True)
class Part:
    """The rows of one task."""

    task: str
    settings: list[str]
    """The keys that tell the configurations apart."""
    figures: list[str]
    rows: list[Row]

    @property
    def data_differ(self) -> bool:
        return len({row.data.key for row in self.rows}) > 1

    @property
    def folds_differ(self) -> bool:
        return len({tuple(row.folds) for row in self.rows}) > 1

    def data_names(self) -> list[str]:
        """A name of each row's data set, with as much as it takes to tell them apart."""
        forms = (
            lambda data: data.name,
            lambda data: f"{data.name}, {len(data.cases)} cases" if data.cases else data.root,
            lambda data: f"{data.name}: {', '.join(data.labels)}",
        )
        distinct = len({row.data.key for row in self.rows})
        for form in forms:
            names = [form(row.data) for row in self.rows]
            if len(set(names)) == distinct:
                return names
        return [f"{row.data.name} {row.data.key[:8]}" for row in self.rows]


@dataclass(frozen=True)
class Comparison:
    """Segmentations and pre-trainings, apart."""

    weights: str
    """last or best: whose figures these are."""
    parts: list[Part]
    damaged: list[str]
    """Runs that could not be read, and why."""

    @property
    def rows(self) -> list[Row]:
        return [row for part in self.parts for row in part.rows]


def compare(paths: Sequence[Path], weights: str = "last") -> Comparison:
    """Compare run folders, and all runs in folders of runs.

    Args:
        weights: "last" takes the figures of each run's last validation, "best" those of its best one.

    Raises:
        UserError: a path holds no run, or no run has a validation.
    """
    runs: list[RunSummary] = []
    damaged: list[str] = []
    for folder in run_folders(paths):
        try:
            runs.append(read_run(folder, weights))
        except UserError as error:
            damaged += error.problems
    if not any(run.figures for run in runs):
        none = f"{', '.join(map(str, paths))}: none of the {len(runs) + len(damaged)} runs has a validation to compare"
        raise UserError([none, *damaged])
    parts = []
    for task in MEASURES:
        own = [run for run in runs if run.task == task]
        if own:
            parts.append(_part(task, own))
    return Comparison(weights, parts, damaged)


def _part(task: str, runs: list[RunSummary]) -> Part:
    data = one_data_set(runs)
    rows: dict[tuple[str, str], Row] = {}
    for run in runs:
        settings = {key: value for key, value in run.config.items() if key not in REPEATED}
        row = rows.setdefault((run.key, data[run.path].key), Row(settings, data[run.path]))
        if settings.get("init_from") != row.settings.get("init_from"):  # a pre-training for each fold
            starts = [str(settings["init_from"]), str(row.settings["init_from"])]
            row.settings["init_from"] = os.path.commonprefix(starts) + "..."  # noqa: RUF071 - for a text, not a path
        row.runs.append(run)
    figures = dict.fromkeys(name for run in runs for name in run.figures)
    kinds: dict[str, int] = {}
    for name in figures:  # all that was measured in one way stand side by side, the files' geometry first
        kinds.setdefault(name.partition(" (")[2], len(kinds))
    ordered = sorted(
        (name for name in figures if name not in MEASUREMENTS), key=lambda name: kinds[name.partition(" (")[2]]
    )
    ordered += [name for name in MEASUREMENTS if name in figures]
    found = list(rows.values())
    keys = distinguishing([row.settings for row in found])
    if not keys and len({row.data.key for row in found}) == 1:
        keys = ["model.name"]
    return Part(task, keys, ordered, found)


def one_data_set(runs: Sequence[RunSummary]) -> dict[Path, DataIdentity]:
    """The data set of each run, one object for runs of the same.

    A data set is all cases that a run trains and validates on: the same for all folds, another one where cases were
    added, changed or left out. A run that trains on a part of the cases only (`data.train_cases`) does not say what the
    others are: runs of one configuration that share cases are of one data set then.
    """
    found: dict[Path, DataIdentity] = {}
    # What has not begun to train has no split yet: it takes that of the others, so they come first.
    for run in sorted(runs, key=lambda run: not run.data.cases and not run.figures):
        same = (other for before in runs if (other := found.get(before.path)) is not None and _one(run, before, other))
        found[run.path] = next(same, run.data)
    return found


def _one(run: RunSummary, before: RunSummary, data: DataIdentity) -> bool:
    """Whether a run is on the data set of another run, though its record does not say quite the same cases."""
    if before.key != run.key:
        return False
    if not run.data.cases:
        return not run.figures and data.root == run.data.root
    of_a_part = run.config.get("data.train_cases") is not None
    return of_a_part and data.labels == run.data.labels and bool(data.cases & run.data.cases)


def distinguishing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that tell configurations apart.

    Networks of different names have different keys: `model.name` stands for those. A key is listed if it differs
    between configurations with the same name of that section.
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


def is_score(figure: str) -> bool:
    """Whether more of it is better and it is the network's doing."""
    name = figure.split(" (")[0].split(".")[0]
    return name in ("dice", "dice_per_class", "ssim", "psnr", "ssim_hidden", "psnr_hidden")
