"""The runs behind a row of pooled scores, and the predictions of them that were scored."""

from __future__ import annotations

from pathlib import Path

from fusionseg.inference.comparison.matching_evaluation import prediction_options
from fusionseg.inference.comparison.run_summary import RunSummary
from fusionseg.inference.statistics.scores import PooledRow


def members_of(row: PooledRow) -> list[Path]:
    """The run folders of a row; of a row of ensembles, the runs of all of them.

    Args:
        row: the row.
    """
    found: list[Path] = []
    for run in _scored_runs(row):
        if run.evaluation == run.path:
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
    return any(run.evaluation is not None and run.evaluation == run.path for run in row.row.runs)


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
