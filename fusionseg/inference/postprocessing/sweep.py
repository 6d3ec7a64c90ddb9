"""The post-processing of the runs of a table: chosen for each configuration, unless it is up to date."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fusionseg.inference.evaluation.opening import EvaluationOptions, open_evaluation
from fusionseg.inference.postprocessing.files import find_postprocessing
from fusionseg.inference.postprocessing.validation import Choice, choose_for_runs
from fusionseg.inference.predictor import PredictOptions
from fusionseg.runs.evaluations import SUMMARY


def choose_where_due(runs: Sequence[Path], checkpoint: str) -> Choice | None:
    """Choose one post-processing for runs of one configuration, as `choose_for_runs` does, if it is not up to date.

    Args:
        runs: run folders, such as the folds of a cross-validation.
        checkpoint: the weights of the evaluations, "last" or "best".

    Returns:
        None if each run has a choice that was made on these runs after their evaluations.

    Raises:
        UserError: see `choose_for_runs`; or the file of an earlier choice is damaged.
        WriteError: a file cannot be written.
    """
    return None if _is_current(runs, checkpoint) else choose_for_runs(runs, checkpoint)


def _is_current(runs: Sequence[Path], checkpoint: str) -> bool:
    found = find_postprocessing(runs)
    if len(found) < len(runs):
        return False
    options = EvaluationOptions(PredictOptions(checkpoint=checkpoint))
    summaries = [open_evaluation(run, options).folder / SUMMARY for run in runs]
    if not all(summary.is_file() for summary in summaries):
        return False
    evaluated = max(summary.stat().st_mtime_ns for summary in summaries)
    return all(
        one.chosen.get("checkpoint") == checkpoint
        and _runs_of(one.chosen.get("runs")) == {str(run.resolve()) for run in runs}
        and one.path.stat().st_mtime_ns >= evaluated
        for one in found
    )


def _runs_of(members: object) -> set[str]:
    """The run folders that a choice was made on."""
    found = members if isinstance(members, list) else []
    return {str(member.get("run")) for member in found if isinstance(member, dict)}
