"""Folders for results: the name of an evaluation's folder, and folders that belong to a data set."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusionseg.utils.errors import UserError

_DATASET_FOLDERS = {"imagestr", "imagests", "labelstr", "labelsts", "imagesval", "labelsval"}
_LISTS = ("training", "validation", "test", "testing")
_MAX_JSON_BYTES, _MAX_JSONS, _MAX_PARENTS = 50_000_000, 50, 3


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
