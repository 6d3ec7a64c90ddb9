"""Rows of ensembles and of masks with post-processing in a table over runs."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusionseg.inference.comparison.matching_evaluation import MatchingEvaluation
from fusionseg.inference.comparison.run_summary import (
    FILES,
    REPEATED,
    VALIDATED_ON_TRAINING_CASES,
    RunSummary,
    name_without_repetition,
    summarise_run,
)
from fusionseg.inference.postprocessing.evaluated import CHOSEN_ON, evaluated_postprocessing
from fusionseg.runs.evaluations import read_summary
from fusionseg.runs.json_files import JsonObject
from fusionseg.runs.records import RunStatus
from fusionseg.utils.errors import UserError

ENSEMBLE = "ensemble"
"""The setting that an ensemble has beside those of its runs: their number."""
POSTPROCESS = "postprocess"
"""The setting of masks with post-processing: "auto", or the file."""
OPTIONS = "options"
"""The setting of an evaluation with other options of the prediction than those of the runs."""
_OPTIMISTIC = (
    "its post-processing was chosen on cases that are scored, so the scores are optimistic; fusionseg postprocess with"
    " the runs of all folds, and then fusionseg evaluate --postprocess auto, score each fold by a choice on the others"
)
_UNKNOWN_CHOICE = "it is not known whether its post-processing was chosen on the scored cases"
_OUTDATED = "its post-processing has changed since its evaluation; fusionseg evaluate RUN --postprocess makes a new one"


def summarise_further(first: RunSummary, weights: str, *, ensembles: bool, postprocessed: bool) -> list[RunSummary]:
    """Summarise the further evaluations of a run, each as a run of its own.

    Args:
        first: the run in whose folder the evaluations are.
        weights: "last" or "best", as for the run.
        ensembles: include the evaluations of the run together with others.
        postprocessed: include the evaluations of masks with post-processing.

    Raises:
        UserError: another run of an ensemble cannot be read.
    """
    known: dict[Path, RunSummary] = {}
    found = []
    for evaluation in first.further:
        if (evaluation.others and not ensembles) or (evaluation.postprocess and not postprocessed):
            continue
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
        keys = sorted(member.key for member in members)
        settings = _settings(members)
        name = _name(members)
        if evaluation.postprocess is not None:
            keys.append(f"post-processing {evaluation.postprocess}")
            settings[POSTPROCESS] = evaluation.postprocess
            name += " + post-processing"
        if evaluation.remarks:  # the same runs may have evaluations with several options
            keys += evaluation.remarks
            settings[OPTIONS] = "; ".join(evaluation.remarks)
        summary = RunSummary(
            path=evaluation.folder,
            name=name,
            task=first.task,
            config=settings,
            key=hashlib.sha256(" ".join(keys).encode()).hexdigest(),
            data=first.data,
            fold=first.fold,
            status=RunStatus.COMPLETED,
            metrics=metrics,
            marks=tuple(marks),
            remarks=(*evaluation.remarks, *_postprocessing_remarks(evaluation, first.path)),
            evaluation=evaluation.folder,
        )
        found.append(summary)
    return found


def _postprocessing_remarks(evaluation: MatchingEvaluation, run: Path) -> list[str]:
    """Remarks about the post-processing of an evaluation; none for one without."""
    if evaluation.postprocess is None or evaluation.folder is None:
        return []
    summary = read_summary(evaluation.folder)
    recorded = summary.get("postprocessing")
    remarks = list(_choice_remarks(recorded if isinstance(recorded, dict) else {}))
    try:
        now = evaluated_postprocessing(evaluation.postprocess, [run, *evaluation.others], of_own_cases=True)
    except UserError:
        return [*remarks, _OUTDATED]
    return remarks if now is not None and now.is_recorded_in(summary) else [*remarks, _OUTDATED]


def _choice_remarks(recorded: JsonObject) -> Iterator[str]:
    """Yield a remark if the post-processing of an evaluation was, or may have been, chosen on the scored cases."""
    chosen_on = recorded.get(CHOSEN_ON)
    if chosen_on is None:
        yield _UNKNOWN_CHOICE
    elif chosen_on:
        yield _OPTIMISTIC


def _name(members: list[RunSummary]) -> str:
    counts = Counter(name_without_repetition(member.name) for member in members)
    return " + ".join(name if count == 1 else f"{count} x {name}" for name, count in sorted(counts.items()))


def _settings(members: list[RunSummary]) -> dict[str, Any]:
    """The settings of an ensemble: a setting that differs between its runs has all of their values."""
    settings: dict[str, Any] = {ENSEMBLE: f"{len(members)} runs"} if len(members) > 1 else {}
    for key in dict.fromkeys(key for member in members for key in member.config):
        values = [member.config.get(key) for member in members]
        same = all(value == values[0] for value in values) or key in REPEATED
        settings[key] = values[0] if same else " + ".join(dict.fromkeys(map(str, values)))
    return settings
