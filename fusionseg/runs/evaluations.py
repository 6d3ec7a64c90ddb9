"""The evaluations of a run: folders in the run folder, each with the results of one request."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from typing import Any

from fusionseg.data.formats.dataset import Dataset
from fusionseg.runs.archive.layout import is_archive
from fusionseg.runs.json_files import JsonObject, finite_or_none, read_object
from fusionseg.runs.paths import EVALUATION, is_run_folder
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import file_name, whole_file, write_json

CASES, SUMMARY, PICTURE, VOLUMES, MASKS = "cases.csv", "summary.json", "best_and_worst.png", "volumes", "masks"
LESIONS, BRANCHES = "lesions.csv", "branches.csv"
DETAIL_COLUMNS: Mapping[str, tuple[str, ...]] = {
    LESIONS: ("case", "label", "mask", "lesion", "volume_ml", "x", "y", "z", "matched", "iou", "dice"),
    BRANCHES: ("case", "label", "branch", "voxels", "diameter_mm", "covered", "found"),
}
"""Columns of the tables of lesions and branches, which only some evaluations have, by the name of the file."""
_FIRST_COLUMNS = ("case,label,dice,", "case,ssim,")
"""First columns of cases.csv, of a segmentation and of a pre-training."""
NOT_METRICS = ("case", "label", "voxels_true", "voxels_predicted", "trained_on", "annotated", "voxels_ignored")
"""Columns of cases.csv of a segmentation that are no metrics."""
_RESULTS = "_results"


@dataclass(frozen=True)
class EvaluationRequest:
    """The request that an evaluation answers. Results of another request are never replaced."""

    dataset: Dataset | None
    """The data set that was scored; None means the run's own validation cases."""
    given: str | None
    """The path by which `dataset` was named."""
    others: Sequence[Path] = ()
    """Runs whose predictions are averaged with those of this run."""
    checkpoint: str = "last"
    overlap: float | None = None
    """Overlap of neighbouring windows; None means that of the run's configuration."""
    flips: bool = False
    """Whether the prediction is averaged over flips."""
    include_trained: bool = False
    """Whether the means count cases that were trained on."""
    precision: str | None = None
    """Precision of the forward pass; None means that of the training, or another one if the device lacks it."""
    postprocess: str | None = None
    """The post-processing of the masks: "auto" for that of the runs, or the path of its file; None for none."""

    def to_json(self) -> JsonObject:
        """Plain values, for the summary."""
        content: JsonObject = {
            "dataset": None if self.dataset is None else str(self.dataset.place),
            "with": sorted(str(run.resolve()) for run in self.others),
            "checkpoint": self.checkpoint,
            "overlap": self.overlap,
            "tta": self.flips,
            "include_trained": self.include_trained,
        }
        if self.precision is not None:  # without it, the request is equal to that of earlier versions
            content["precision"] = self.precision
        if self.postprocess is not None:
            content["postprocess"] = self.postprocess
        return content

    @property
    def folder_name(self) -> str:
        """`evaluation`, followed by each option that is not the default one."""
        parts = [EVALUATION]
        parts += ["ensemble"] if self.others else []
        if self.dataset is not None and self.given is not None:
            is_folder = os.path.isdir(os.path.expanduser(self.given))
            parts.append(self.dataset.place.parent.name if is_folder else self.dataset.short_name)
        default = "last" if self.dataset is None else "best"
        parts += [] if self.checkpoint == default else [self.checkpoint]
        parts += ["tta"] if self.flips else []
        parts += ["with_trained"] if self.include_trained else []
        parts += [] if self.overlap is None else [f"overlap{self.overlap:g}"]
        parts += [] if self.precision is None else [self.precision]
        parts += [] if self.postprocess is None else ["postprocessed"]
        return file_name("_".join(parts))


def results_folder(run: Path) -> Path:
    """The folder for the evaluations of a run: the run folder; of an archive model.fseg, model_results beside it.

    Args:
        run: the run folder, or an archive.
    """
    return run.with_name(f"{run.stem}{_RESULTS}") if is_archive(run) else run


def evaluated_run(folder: Path) -> Path:
    """The run or the archive that an evaluation is of: the inverse of `results_folder`.

    Args:
        folder: of the evaluation.
    """
    parent = folder.resolve().parent
    if is_run_folder(parent) or not parent.name.endswith(_RESULTS):
        return parent
    stem = parent.name.removesuffix(_RESULTS)
    return next((path for path in sorted(parent.parent.iterdir()) if path.stem == stem and is_archive(path)), parent)


def evaluation_folder(run: Path, request: EvaluationRequest) -> Path:
    """The folder for the results of a request, in `results_folder`.

    The name is `EvaluationRequest.folder_name`. A short hash is appended if that folder holds results of another
    request, for example of another data set with the same name.

    Args:
        run: the run folder.
        request: the request.
    """
    parent = results_folder(run)
    plain = parent / request.folder_name
    if not _holds_another(plain, request):
        return plain
    key = hashlib.sha256(json.dumps(request.to_json(), sort_keys=True).encode()).hexdigest()[:6]
    return parent / file_name(f"{request.folder_name}_{key}")


def write_evaluation(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    summary: JsonObject,
    scores: Sequence[JsonObject] | JsonObject,
    details: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> None:
    """Write cases.csv and summary.json of an evaluation, and its tables of lesions and branches.

    The results of an earlier evaluation are deleted first. A process that is killed here then never leaves the summary
    of one evaluation beside the cases of another.

    Args:
        folder: the evaluation's folder.
        rows: one row of cases.csv each, with the same keys in the same order. nan becomes an empty cell. Without rows,
            there is no cases.csv.
        summary: the summary without its scores. nan becomes null.
        scores: the scores of the cases, for the summary.
        details: rows by the name of the file, see `DETAIL_COLUMNS`; None for no such table. Such tables of an earlier
            evaluation are deleted.
    """
    withdraw_summary(folder)
    if rows:
        _write_table(folder / CASES, rows, list(rows[0]))
    for name, columns in DETAIL_COLUMNS.items():
        if details is not None and name in details:
            _write_table(folder / name, details[name], columns)
        elif not _is_foreign_detail(folder, name):
            (folder / name).unlink(missing_ok=True)
    write_json(folder / SUMMARY, finite_or_none({**summary, "scores": scores}))


def withdraw_summary(folder: Path) -> None:
    """Delete the summary and the picture of an evaluation, before other files of it are written again.

    Args:
        folder: the evaluation's folder.
    """
    for name in (SUMMARY, PICTURE):
        (folder / name).unlink(missing_ok=True)


def check_details(folder: Path, names: Iterable[str]) -> None:
    """Refuse files in the place of the tables of lesions and branches that no evaluation wrote.

    Args:
        folder: the evaluation's folder.
        names: of the tables that will be written.

    Raises:
        UserError: with all of them.
    """
    problems = [
        f"{folder / name}: is no table of an evaluation (expected the columns {', '.join(DETAIL_COLUMNS[name])}) and is"
        " not replaced; move it away"
        for name in names
        if _is_foreign_detail(folder, name)
    ]
    if problems:
        raise UserError(problems)


def _is_foreign_detail(folder: Path, name: str) -> bool:
    path = folder / name
    return os.path.lexists(path) and not _starts_with(path, ",".join(DETAIL_COLUMNS[name]))


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {key: "" if isinstance(value, float) and isnan(value) else value for key, value in row.items()}
            )


def read_summary(folder: Path) -> JsonObject:
    """Read the summary of an evaluation; empty if there is none, or if it is damaged.

    Args:
        folder: the evaluation's folder.
    """
    return read_object(folder / SUMMARY)


@dataclass(frozen=True)
class RecordedScore:
    """A row of cases.csv of a segmentation: the scores of one class, or region, in one case."""

    case: str
    label: str
    trained_on: str
    """Whether a network was trained on the image: yes, no or unknown."""
    metrics: Mapping[str, float]
    """Values by name of the metric; nan for an empty cell."""


def read_scores(folder: Path) -> list[RecordedScore]:
    """Read cases.csv of the evaluation of a segmentation.

    Args:
        folder: the evaluation's folder.

    Raises:
        UserError: there is no such table, or it is damaged.
    """
    path = folder / CASES
    again = "fusionseg evaluate RUN makes it again"
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        return [
            RecordedScore(
                row["case"],
                row["label"],
                row.get("trained_on") or "unknown",
                {name: nan if text == "" else float(text) for name, text in row.items() if name not in NOT_METRICS},
            )
            for row in rows
        ]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {again}") from error
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: is no table of scores ({error}); {again}") from error


def evaluations_of(run: Path) -> list[tuple[Path, JsonObject]]:
    """Read the summaries of all evaluations of a run.

    Args:
        run: the run folder.

    Returns:
        The folder and the summary of each, sorted by the folder's name.
    """
    return [(path.parent, read_object(path)) for path in sorted(run.glob(f"{EVALUATION}*/{SUMMARY}"))]


def is_current(
    folder: Path,
    request: EvaluationRequest,
    weights: Sequence[Path],
    *,
    folders: Sequence[str] = (),
    tables: Sequence[str] = (),
    definitions: Mapping[str, JsonObject] | None = None,
) -> bool:
    """Tell whether a folder holds the complete answer to a request, newer than the weights.

    Args:
        folder: the evaluation's folder.
        request: the request.
        weights: the checkpoints of the run and of the runs averaged with it.
        folders: those that belong to the answer: `MASKS`, `VOLUMES`.
        tables: those that belong to the answer beside cases.csv: `LESIONS`, `BRANCHES`.
        definitions: of the metrics that the answer has, with their parameters; None for those of any version.
    """
    summary = read_summary(folder)
    if summary.get("request") != request.to_json() or not all((folder / name).is_dir() for name in folders):
        return False
    if not all((folder / name).is_file() for name in tables):
        return False
    if definitions is not None and summary.get("definitions") != json.loads(json.dumps(definitions)):
        return False
    if Path(str(summary.get("checkpoint"))).name != weights[0].name or summary.get("failed") != {}:
        return False
    written = (folder / SUMMARY).stat().st_mtime_ns
    return all(written > path.stat().st_mtime_ns for path in weights)


def _holds_another(folder: Path, request: EvaluationRequest) -> bool:
    """Tell whether a folder holds files that an evaluation of this request did not write."""
    summary = folder / SUMMARY
    if not os.path.lexists(summary):  # an evaluation that was killed leaves its cases.csv alone
        return any(os.path.lexists(folder / name) for name in (CASES, PICTURE)) and not _is_own_table(folder / CASES)
    try:
        found = json.loads(summary.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    if not isinstance(found, dict) or "checkpoint" not in found or not {"classes", "figures", "fields"} & found.keys():
        return True
    # Earlier versions did not write the request.
    return "request" in found and found["request"] != request.to_json()


def _is_own_table(path: Path) -> bool:
    return _starts_with(path, _FIRST_COLUMNS)


def _starts_with(path: Path, header: str | tuple[str, ...]) -> bool:
    """Tell whether the first line of a file starts with a header; False if it cannot be read."""
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            return stream.readline().startswith(header)
    except OSError:
        return False
