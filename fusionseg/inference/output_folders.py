"""Folders for results: the name of an evaluation's folder, and folders that belong to a data set."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionseg.data.formats.dataset import Dataset
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import file_name

CASES, SUMMARY, PICTURE = "cases.csv", "summary.json", "best_and_worst.png"
FIRST_COLUMNS = ("case,label,dice,", "case,ssim,")
"""First columns of cases.csv, of a segmentation and of a pre-training."""

_DATASET_FOLDERS = {"imagestr", "imagests", "labelstr", "labelsts", "imagesval", "labelsval"}
_LISTS = ("training", "validation", "test", "testing")
_MAX_JSON_BYTES, _MAX_JSONS, _MAX_PARENTS = 50_000_000, 50, 3


@dataclass(frozen=True)
class Request:
    """The request of an evaluation: it never replaces results of another request."""

    dataset: Dataset | None
    """Another data set than the run's own validation cases."""
    given: str | None
    """The path by which it was asked for."""
    others: Sequence[Path] = ()
    """Runs that are averaged with it."""
    checkpoint: str = "last"
    overlap: float | None = None
    """None is the run's own."""
    flips: bool = False
    include_trained: bool = False
    """Whether cases that were trained on are scored too."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, for summary.json."""
        return {
            "dataset": None if self.dataset is None else str(self.dataset.place),
            "with": sorted(str(run.resolve()) for run in self.others),
            "checkpoint": self.checkpoint,
            "overlap": self.overlap,
            "tta": self.flips,
            "include_trained": self.include_trained,
        }

    @property
    def folder(self) -> str:
        """evaluation, and what differs from a plain one."""
        parts = ["evaluation"]
        parts += ["ensemble"] if self.others else []
        if self.dataset is not None and self.given is not None:
            of_folder = os.path.isdir(os.path.expanduser(self.given))
            parts.append(self.dataset.place.parent.name if of_folder else self.dataset.short_name)
        usual = "last" if self.dataset is None else "best"
        parts += [] if self.checkpoint == usual else [self.checkpoint]
        parts += ["tta"] if self.flips else []
        parts += ["with_trained"] if self.include_trained else []
        parts += [] if self.overlap is None else [f"overlap{self.overlap:g}"]
        return file_name("_".join(parts))


def evaluation_folder(run: Path, request: Request) -> Path:
    """The folder for the results of a request, in the run's folder.

    The plain name, unless it holds results of another request (another data set of the same name, say): then with a
    short hash.
    """
    plain = run / request.folder
    if not _holds_another(plain, request):
        return plain
    key = hashlib.sha256(json.dumps(request.to_json(), sort_keys=True).encode()).hexdigest()[:6]
    return run / file_name(f"{request.folder}_{key}")


def _holds_another(folder: Path, request: Request) -> bool:
    """Whether a folder holds files that an evaluation of this request did not write."""
    summary = folder / SUMMARY
    if not os.path.lexists(summary):  # one that was killed leaves its cases.csv alone
        return any(os.path.lexists(folder / name) for name in (CASES, PICTURE)) and not _is_own_table(folder / CASES)
    try:
        found = json.loads(summary.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    if not isinstance(found, dict) or "checkpoint" not in found or not {"classes", "figures"} & found.keys():
        return True
    # Earlier versions did not write the request.
    return "request" in found and found["request"] != request.to_json()


def _is_own_table(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            return stream.readline().startswith(FIRST_COLUMNS)
    except OSError:
        return False


def refuse_dataset_folder(output: Path, key: str) -> None:
    """Refuse a folder in which a data set has its images or labels: what is written there would become part of it.

    Args:
        key: the option that names the folder, for the message.

    Raises:
        UserError: it is imagesTr, labelsTr or the like beside a data set's files, or a list names files in it.
    """
    folder = output.resolve()
    beside = folder.parent
    reason = ""
    if folder.name.lower() in _DATASET_FOLDERS and (
        (beside / "dataset.json").exists() or any((beside / name).is_dir() for name in ("imagesTr", "imagesTs"))
    ):
        reason = f"{folder.name} of the data set {beside}"
    for source in () if reason else _lists_near(folder):
        if folder in _listed_folders(source):
            reason = f"{source} lists images or labels in it"
            break
    if reason:
        raise UserError(f"{key}: {output}: belongs to a data set ({reason}): choose a folder of its own for the masks")


def _lists_near(folder: Path) -> Iterator[Path]:
    for parent in (folder, *list(folder.parents)[:_MAX_PARENTS]):
        try:
            found = sorted(entry.path for entry in os.scandir(parent) if entry.name.endswith(".json"))
        except OSError:
            continue
        yield from (Path(path) for path in found[:_MAX_JSONS])


def _listed_folders(source: Path) -> set[Path]:
    """The folders of all files that a JSON lists, if it is a data set's."""
    try:
        if source.stat().st_size > _MAX_JSON_BYTES:
            return set()
        content = json.loads(source.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return set()
    entries = [entry for key in _LISTS if isinstance(content, dict) for entry in _as_list(content.get(key))]
    parts = [part for entry in entries for part in (entry.values() if isinstance(entry, dict) else [entry])]
    files = [file for part in parts for file in _as_list(part) if isinstance(file, str) and "\0" not in file]
    return {folder.resolve() for folder in {(source.parent / file).parent for file in files}}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
