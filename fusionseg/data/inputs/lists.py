"""The cases of a data set that are predicted: those that a datalist or another JSON file of a data set lists."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fusionseg.data.formats.channel_names import channel_order
from fusionseg.data.formats.dataset import open_dataset
from fusionseg.data.formats.ignored_entries import LISTS
from fusionseg.data.formats.missing_files import capped, file_problems, wrong_base
from fusionseg.data.formats.readers import Readers
from fusionseg.data.inputs.found import InputOptions, Inputs
from fusionseg.utils.errors import UserError, some_of

CHOICES = ("test", "training", "all")
"""The cases of a data set that can be asked for."""
_MAX_JSON_BYTES, _MAX_JSONS = 50_000_000, 50


def list_in_folder(folder: Path, readers: Readers) -> Path | None:
    """Find the JSON file of a data set in a folder.

    A JSON file that lists no cases is none: nnU-Net writes a dataset.json beside its predictions.

    Args:
        folder: the folder.
        readers: of the image files.

    Raises:
        UserError: there are several such files, or images beside it.
    """
    images = readers.image_files(folder)
    stems = {readers.stem(image) for image in images}
    files = [file for file in sorted(folder.glob("*.json")) if not file.name.startswith(".") and file.stem not in stems]
    lists = [file for file in files[:_MAX_JSONS] if _lists_cases(file)]
    if not lists:
        return None
    if images:
        raise UserError(
            f"{folder}: holds {len(images)} images and the list {lists[0].name}; it is not clear which is the input:"
            f" give {lists[0]}, or put the images into a folder of their own"
        )
    if len(lists) > 1 and folder / "dataset.json" not in lists:
        names = some_of([file.name for file in lists])
        raise UserError(f"{folder}: holds several lists of cases ({names}); give the file of one of them")
    return folder / "dataset.json" if folder / "dataset.json" in lists else lists[0]


def cases_of_list(source: Path, channels: Sequence[str] | None, readers: Readers, options: InputOptions) -> Inputs:
    """List the cases of a data set that are predicted.

    Args:
        source: the JSON file of the data set.
        channels: names of the network's channels; None accepts any.
        readers: of the image files.
        options: which cases are taken, and where the paths of the list start.

    Raises:
        UserError: the data set has faults, other channels than the network, or no such cases.
    """
    dataset = open_dataset(
        source,
        images_only=True,
        require_files=False,
        readers=readers,
        base_dir=options.base_dir,
        missing_channels=options.missing_channels,
    )
    by_name = {"test": dataset.testing, "training": dataset.training, "all": dataset.training + dataset.testing}
    chosen = options.cases or ("test" if dataset.testing else "all")
    cases = by_name[chosen]
    if not cases:
        there = ", ".join(f"{name} ({len(listed)})" for name, listed in by_name.items() if listed)
        raise UserError(f"--cases {chosen}: {source} lists no such cases; expected {there}")
    images = [replace(case, label=None) for case in cases]
    if problems := wrong_base(source, dataset.base, images) or file_problems(
        source, images, len(dataset.channels), readers
    ):
        raise UserError(capped(problems))
    order = None
    if channels is not None:
        order = channel_order(channels, dataset.channels)
        if order is None:
            raise UserError(
                f"{source}: has the channels {list(dataset.channels)}, and the run was trained on {list(channels)};"
                " name the same channels in the list (modality or channel_names), in any order"
            )
    what = {"test": "its test cases", "training": "its training cases", "all": "all its cases"}[chosen]
    others = len(by_name["all"]) - len(cases)
    more = f"; --cases all takes the other {others} too" if options.cases is None and others else ""
    return Inputs(
        tuple(sorted(images, key=lambda case: case.name)),
        f"{source}, {what}{more}",
        dataset.notes + dataset.faults,
        order,
    )


def _lists_cases(file: Path) -> bool:
    """Tell whether a JSON file lists the cases of a data set, or is the dataset.json of nnU-Net's folders."""
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            return False
        content: Any = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(content, dict):
        return False
    if any(isinstance(content.get(key), list) and content[key] for key in LISTS):
        return True
    folders = any((file.parent / name).is_dir() for name in ("imagesTr", "imagesTs"))
    return file.name == "dataset.json" and (folders or isinstance(content.get("dataset"), dict))
