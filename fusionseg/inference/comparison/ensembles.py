"""Rows of ensembles in a table over runs: the evaluations that averaged several runs."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

from fusionseg.inference.comparison.run_summary import (
    FILES,
    REPEATED,
    VALIDATED_ON_TRAINING_CASES,
    RunSummary,
    name_without_repetition,
    summarise_run,
)
from fusionseg.runs.records import RunStatus

ENSEMBLE = "ensemble"
"""The setting that an ensemble has beside those of its runs: their number."""


def summarise_ensembles(first: RunSummary, weights: str) -> list[RunSummary]:
    """Summarise the evaluations of a run together with others, each as a run of its own.

    Args:
        first: the run in whose folder the evaluations are.
        weights: "last" or "best", as for the run.

    Raises:
        UserError: another run of an ensemble cannot be read.
    """
    known: dict[Path, RunSummary] = {}
    found = []
    for evaluation in first.ensembles:
        assert evaluation.folder is not None
        members = [first]
        for path in evaluation.others:
            known[path] = known.get(path) or summarise_run(path, weights)
            members.append(known[path])
        metrics = {f"{name}{FILES}": value for name, value in evaluation.metrics.items()}
        if all("parameters" in member.metrics for member in members):
            metrics["parameters"] = sum(member.metrics["parameters"] for member in members)
        marks = dict.fromkeys(mark for member in members for mark in member.marks)
        if evaluation.trained_on:
            marks[VALIDATED_ON_TRAINING_CASES] = None
        summary = RunSummary(
            path=evaluation.folder,
            name=_name(members),
            task=first.task,
            config=_settings(members),
            key=hashlib.sha256(" ".join(sorted(member.key for member in members)).encode()).hexdigest(),
            data=first.data,
            fold=first.fold,
            status=RunStatus.COMPLETED,
            metrics=metrics,
            marks=tuple(marks),
            remarks=evaluation.remarks,
            evaluation=evaluation.folder,
        )
        found.append(summary)
    return found


def _name(members: list[RunSummary]) -> str:
    counts = Counter(name_without_repetition(member.name) for member in members)
    return " + ".join(name if count == 1 else f"{count} x {name}" for name, count in sorted(counts.items()))


def _settings(members: list[RunSummary]) -> dict[str, Any]:
    """The settings of an ensemble: a setting that differs between its runs has all of their values."""
    settings: dict[str, Any] = {ENSEMBLE: f"{len(members)} runs"}
    for key in dict.fromkeys(key for member in members for key in member.config):
        values = [member.config.get(key) for member in members]
        same = all(value == values[0] for value in values) or key in REPEATED
        settings[key] = values[0] if same else " + ".join(dict.fromkeys(map(str, values)))
    return settings
