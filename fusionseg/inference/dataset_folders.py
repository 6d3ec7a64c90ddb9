"""Folders that belong to a data set. Masks must not be written there."""

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
    """Refuse a folder that holds the images or labels of a data set. Masks in it would become part of the data set.

    Args:
        output: the folder for the masks.
        key: the option that names the folder, for the message.

    Raises:
        UserError: the folder has a name such as labelsTr beside the files of a data set, or a JSON list of a data set
            names files in it.
    """
    folder = output.resolve()
    beside = folder.parent
    reason = ""
    if folder.name.lower() in _DATASET_FOLDERS and (
        (beside / "dataset.json").exists() or any((beside / name).is_dir() for name in ("imagesTr", "imagesTs"))
    ):
        reason = f"{folder.name} of the data set {beside}"
    for path in () if reason else _json_files_near(folder):
        if folder in _listed_folders(path):
            reason = f"{path} lists images or labels in it"
            break
    if reason:
        raise UserError(f"{key}: {output}: belongs to a data set ({reason}): choose another folder for the masks")


def _json_files_near(folder: Path) -> Iterator[Path]:
    """Yield the JSON files in a folder and in the folders above it."""
    for parent in (folder, *list(folder.parents)[:_MAX_PARENTS]):
        try:
            found = sorted(entry.path for entry in os.scandir(parent) if entry.name.endswith(".json"))
        except OSError:
            continue
        yield from (Path(path) for path in found[:_MAX_JSONS])


def _listed_folders(path: Path) -> set[Path]:
    """The folders of all files that a JSON list of a data set names; empty for any other JSON file."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            return set()
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return set()
    if not isinstance(content, dict):
        return set()
    stated = content.get("base_dir")
    base = path.parent / os.path.expanduser(stated) if isinstance(stated, str) and "\0" not in stated else path.parent
    entries = [entry for key in _LISTS for entry in _as_list(content.get(key))]
    parts = [part for entry in entries for part in (entry.values() if isinstance(entry, dict) else [entry])]
    files = [file for part in parts for file in _as_list(part) if isinstance(file, str) and "\0" not in file]
    # An image may be a folder: a DICOM series.
    return {folder.resolve() for file in files for folder in ((base / file).parent, base / file)}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
