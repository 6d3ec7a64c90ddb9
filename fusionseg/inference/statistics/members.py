"""The runs behind a row of pooled scores, and the predictions of them that were scored."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from fusionseg.inference.comparison.matching_evaluation import prediction_options
from fusionseg.inference.comparison.run_summary import RunSummary
from fusionseg.inference.postprocessing.evaluated import CHOSEN_ON, ORIGIN, WITHOUT_OWN
from fusionseg.inference.postprocessing.files import AUTO, asked_postprocessing
from fusionseg.inference.statistics.scores import PooledRow
from fusionseg.utils.errors import UserError
from fusionseg.utils.tables import counted


def members_of(row: PooledRow) -> list[Path]:
    """The run folders of a row; of a row of ensembles, the runs of all of them.

    Args:
        row: the row.
    """
    found: list[Path] = []
    for run in _scored_runs(row):
        if _is_further(run):
            found += [run.path.parent, *map(Path, (run.evaluation_request or {}).get("with") or ())]
        else:
            found.append(run.path)
    return list(dict.fromkeys(found))


def _scored_runs(row: PooledRow) -> list[RunSummary]:
    """The runs of a row that some of its scores are of."""
    scored = {score.path for score in row.scores}
    return [run for run in row.row.runs if str(run.path.resolve()) in scored]


def is_ensemble(row: PooledRow) -> bool:
    """Tell whether the scores of a row are those of ensembles.

    Args:
        row: the row.
    """
    return any(_is_further(run) and (run.evaluation_request or {}).get("with") for run in row.row.runs)


def is_postprocessed(row: PooledRow) -> bool:
    """Tell whether the scores of a row are those of masks with post-processing.

    Args:
        row: the row.
    """
    return any(_is_further(run) and (run.evaluation_request or {}).get("postprocess") for run in row.row.runs)


def _is_further(run: RunSummary) -> bool:
    """Tell whether a summary is of an evaluation of its own, such as that of an ensemble, and not of a run."""
    return run.evaluation is not None and run.evaluation == run.path


def without_partial(rows: Sequence[PooledRow]) -> tuple[list[PooledRow], list[str]]:
    """Leave out the rows with post-processing that lack cases of the same runs without it.

    A choice is over the cases that all rows scored: such a row would take cases from all others.

    Args:
        rows: of one group.

    Returns:
        The other rows, and a sentence for each one that was left out.
    """
    plain = [row for row in rows if not is_postprocessed(row)]
    found, notes = [], []
    for row in rows:
        members = set(members_of(row)) if is_postprocessed(row) else set()
        whole = next(
            (one for one in plain if is_ensemble(one) == is_ensemble(row) and members <= set(members_of(one))), None
        )
        if not members or whole is None or set(whole.cases) <= set(row.cases):
            found.append(row)
            continue
        count = f"{len(row.cases)} of {counted(len(whole.cases), 'case')}"
        notes.append(
            f"{row.name}: left out, as only {count} have scores with post-processing; fusionseg evaluate RUN ..."
            " --postprocess auto makes the others"
        )
    return found, notes


def postprocessing_remarks(row: PooledRow) -> list[str]:
    """Sentences about the post-processing of a row: the cases that it was chosen on, and that of a prediction.

    Args:
        row: the row.
    """
    if not is_postprocessed(row):
        return []
    scored = _scored_runs(row)
    recorded = [run.evaluation_postprocessing or {} for run in scored]
    remarks = []
    if all(one.get(ORIGIN) == WITHOUT_OWN for one in recorded):
        remarks.append(
            "the scores are with the post-processing that was chosen for each run on the cases of the other runs; the"
            " command applies the one that was chosen on all of them"
        )
    if any(one.get(CHOSEN_ON) != 0 for one in recorded):
        remarks.append(
            "the gain by the post-processing is optimistic where the same cases chose it; the bootstrap does not"
            " correct for that"
        )
    if all((run.evaluation_request or {}).get("postprocess") == AUTO for run in scored):
        runs = members_of(row)
        try:
            asked_postprocessing(AUTO, runs)
        except UserError:
            names = " ".join(shlex.quote(str(run)) for run in runs)
            remarks.append(
                f"the command needs one post-processing of all runs, and they do not have one: fusionseg postprocess"
                f" {names} chooses it"
            )
    return remarks


def is_scorable(row: PooledRow) -> bool:
    """Tell whether some case was scored by all runs of a row, and so was unseen by all of them.

    Args:
        row: the row.
    """
    cases: dict[str, set[str]] = {}
    for score in row.scores:
        cases.setdefault(score.path, set()).add(score.case)
    return bool(set.intersection(*cases.values()))


def options_of(row: PooledRow) -> tuple[str, ...] | None:
    """The options of the predictions that were scored, such as `--tta`; None if those of the runs differ.

    Args:
        row: the row.
    """
    found = {tuple(prediction_options(run.evaluation_request or {})) for run in _scored_runs(row)}
    return found.pop() if len(found) == 1 else None
