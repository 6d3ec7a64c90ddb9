"""The cases that the JSON file of an MSD data set, or a MONAI datalist, lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fusionseg.data.formats.case import Case, ChannelFiles
from fusionseg.data.formats.dataset_json import READ_KEYS, annotated_names, as_list
from fusionseg.data.formats.ignored_entries import hidden_entries
from fusionseg.data.formats.readers import Readers
from fusionseg.utils.errors import UserError


def listed_cases(
    source: Path,
    content: dict[str, Any],
    problems: list[str],
    notes: list[str],
    readers: Readers,
    base: Path,
    *,
    accept_missing: bool = False,
) -> tuple[list[Case], list[Case]]:
    """List the training and test cases of an MSD data set or of a datalist.

    Args:
        source: the JSON file.
        content: of the file.
        problems: gets the faults of the lists.
        notes: gets the entries that are left out.
        readers: of the data set.
        base: the result of `base_folder`.
        accept_missing: null in a list of images is a channel that the case lacks.

    Raises:
        UserError: there is no list of cases.
    """
    if not any(key in content for key in ("training", "validation", "test", "testing")):
        raise UserError(f'{source}: has no "training" list; add {{"training": [{{"image": ..., "label": ...}}]}}')
    hidden: list[str] = []

    def entries(key: str) -> list[Case]:
        return _entries(source, key, content, problems, hidden, readers, base, accept_missing=accept_missing)

    training, validation = entries("training"), entries("validation")
    testing = [*entries("test"), *entries("testing")]
    notes += hidden_entries(source, hidden)
    stated = sum(case.fold is not None for case in training)
    if "validation" in content:
        if stated:
            problems.append(f"{source}: has a validation list and states folds in training; keep one of the two")
        training = [replace(case, fold=1) for case in training]
        training += [replace(case, fold=0) for case in validation]
    elif 0 < stated < len(training):
        lacking = [case.name for case in training if case.fold is None]
        problems.append(
            f"{source}: {len(lacking)} of {len(training)} training cases state no fold "
            f"({', '.join(lacking[:5])}); state it for all or for none"
        )
    return training, testing


def _entries(
    source: Path,
    key: str,
    content: dict[str, Any],
    problems: list[str],
    hidden: list[str],
    readers: Readers,
    base: Path,
    *,
    accept_missing: bool,
) -> list[Case]:
    """The cases of one list of the JSON."""
    if not isinstance(content.get(key, []), list):
        problems.append(f'{source}: {key} is not a list; write [{{"image": ..., "label": ...}}, ...]')
        return []
    cases = []
    for i, entry in enumerate(content.get(key, [])):
        entry = entry if isinstance(entry, dict) else {"image": entry}
        images, label, fold = as_list(entry.get("image")), entry.get("label") or None, entry.get("fold")
        missing = [position for position, image in enumerate(images) if image is None] if accept_missing else []
        images = [image for image in images if image is not None] if missing else images
        if None in images and any(images):
            problems.append(
                f"{source}: {key}[{i}]: an image is null; give its file, or set data.missing_channels=zero, which"
                " accepts cases that lack a channel"
            )
        elif not images or not all(isinstance(image, str) and image for image in images):
            others = [str(name) for name in entry if name not in ("image", "label", "fold", "annotated")]
            has = f" (it has {', '.join(others[:5])})" if others else ""
            problems.append(
                f'{source}: {key}[{i}] has no "image"{has}; give a path or a list of paths, one per channel'
            )
        elif label is not None and not isinstance(label, str):
            problems.append(f'{source}: {key}[{i}]: "label" is not a path; give one label file per case')
        elif fold is not None and (not isinstance(fold, int) or isinstance(fold, bool) or fold < 0):
            problems.append(f'{source}: {key}[{i}]: "fold" is {fold!r}; give an integer from 0')
        else:
            paths = tuple(_listed_path(base, image) for image in images)
            if paths[0].name.startswith("."):
                hidden.append(paths[0].name)
                continue
            case_name = _joint_name(paths, readers)
            if missing:
                paths = ChannelFiles(paths, missing)
            annotated = annotated_names(entry, f"{source}: {key}[{i}]", problems)
            columns = {name: value for name, value in entry.items() if name not in READ_KEYS}
            mask = _listed_path(base, label) if label else None
            cases.append(Case(case_name, paths, mask, fold, annotated=annotated, columns=columns))
    return cases


def _listed_path(folder: Path, text: str) -> Path:
    """The path of a listed file. A list that was written on Windows has backslashes."""
    path = folder / text
    return folder / text.replace("\\", "/") if "\\" in text and not path.exists() else path


def _joint_name(images: Sequence[Path], readers: Readers) -> str:
    """Name of a case from its channel files: x for x_0000 and x_0001, or for x_t1 and x_t2."""
    if len(images) == 1:
        return readers.stem(images[0])
    parts = [readers.stem(image).split("_") for image in images]
    shared = 0
    while len({tuple(p[: shared + 1]) for p in parts}) == 1 and shared < min(map(len, parts)):
        shared += 1
    return "_".join(parts[0][:shared]) or images[0].parent.name
