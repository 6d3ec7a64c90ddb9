"""The inputs of a prediction: the cases that a path stands for, and a line about everything that is left out."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fusionseg.data.formats.case import Case
from fusionseg.data.formats.dicom.folder import kind_without_volume
from fusionseg.data.formats.missing_files import capped, missing_notes
from fusionseg.data.formats.readers import Readers
from fusionseg.data.inputs.folders import cases_below_folder, cases_in_folder
from fusionseg.data.inputs.found import Found, InputOptions, Inputs
from fusionseg.data.inputs.lists import cases_of_list, list_in_folder
from fusionseg.utils.errors import UserError, some_of
from fusionseg.utils.files import user_path
from fusionseg.utils.tables import counted

_MOST_NAMED = 5


def find_inputs(
    path: Path,
    channels: Sequence[str] | None = None,
    readers: Readers | None = None,
    options: InputOptions | None = None,
) -> Inputs:
    """Find the cases that a path stands for.

    The path is an image file; a folder with a DICOM series, or with images; a folder with a folder for each case; or
    the JSON file or the folder of a data set.

    Args:
        path: the input.
        channels: names of the network's channels; None if they are not known.
        readers: of the image files; None for the built-in ones.
        options: which cases of a data set are taken.

    Raises:
        UserError: there is no image, it is not clear what is an image, or two cases have one name. All problems are
            listed.
    """
    readers, options = readers or Readers(), options or InputOptions()
    path = user_path(str(path))
    listed = _dataset_of(path, readers)
    if listed is not None:
        return cases_of_list(listed, channels, readers, options)
    given = {"--cases": options.cases, "--base-dir": options.base_dir}
    if unused := [name for name, value in given.items() if value is not None]:
        raise UserError(
            f"{', '.join(unused)}: {path} is no data set (expected a datalist JSON, or its folder); remove it"
        )
    if path.is_file():
        return _one_file(path, readers)
    if not path.is_dir():
        raise UserError(
            f"{path}: no such file or folder; give an image file ({readers.expected}), a folder of them, a folder for"
            " each case, or a datalist JSON"
        )
    accept = options.missing_channels == "zero"
    found = cases_in_folder(path, channels, readers, accept_missing=accept)
    searched = None
    if not (found.cases or found.problems):
        _refuse_folder_of_folders(path, readers)
        found, searched = cases_below_folder(path, channels, readers, accept_missing=accept), path
    inputs = _checked(path, found, searched, readers)
    return replace(inputs, notes=(*inputs.notes, *missing_notes(path, inputs.cases, channels or ())))


def _dataset_of(path: Path, readers: Readers) -> Path | None:
    """The JSON file of a data set that a path names, by itself or by its folder; None for other inputs."""
    if path.is_file():
        return path if path.suffix.lower() == ".json" else None
    return list_in_folder(path, readers) if path.is_dir() else None


def _one_file(path: Path, readers: Readers) -> Inputs:
    if not readers.is_image_file(path):
        remedy = "give such a file, a folder, or a datalist JSON"
        if readers.reads_folder(path.absolute().parent):
            remedy = f"it lies among the slices of a series: give their folder, {path.absolute().parent}"
        raise UserError(f"{path}: not an image file (expected {readers.expected}); {remedy}")
    case = Case(re.sub("_0000$", "", readers.stem(path)), (path,), None)
    return Inputs((case,), f"the image {path}")


def _refuse_folder_of_folders(path: Path, readers: Readers) -> None:
    """Refuse the folder of a data set without its JSON: its subfolders are not cases.

    Raises:
        UserError: the folder is such a folder.
    """
    if inside := [path / name for name in ("imagesTs", "imagesTr") if (path / name).is_dir()]:
        raise UserError(f"{path}: holds no image; did you mean {inside[0]}?")


def _checked(path: Path, found: Found, searched: Path | None, readers: Readers) -> Inputs:
    """Check the cases of a folder, and describe what is left out.

    Raises:
        UserError: with all problems.
    """
    problems = list(found.problems)
    if not found.cases and not problems:
        if (kind := kind_without_volume(path)) is not None:
            found.without_volume[path] = kind
        left_out = "".join(f" ({note.partition(': ')[2]})" for note in _notes(path, found))
        problems.append(
            f"{path}: holds no image, and no folder with one (expected {readers.expected}){left_out}; give a folder of"
            " images, or a folder for each case"
        )
    for name, count in Counter(case.name for case in found.cases).items():
        if count > 1:
            places = some_of([str(case.images[0]) for case in found.cases if case.name == name], 3)
            problems.append(
                f"{path}: {count} inputs are named {name} ({places}), their masks would overwrite each other; rename"
                " them"
            )
    if problems:
        raise UserError(capped(problems))
    kind = "a folder for each case" if searched is not None else "a folder of images"
    if len(found.cases) == 1 and found.cases[0].images == (path,):
        kind = "a DICOM series"
    cases = tuple(sorted(found.cases, key=lambda case: case.name))
    return Inputs(cases, f"{path}, {kind}", _notes(path, found), searched=searched)


def _notes(path: Path, found: Found) -> tuple[str, ...]:
    """At most one line about the files and folders that are left out."""
    parts = []
    for paths, one, several in (
        (found.unread, "file or folder", "files or folders"),
        (found.empty, "folder without an image", "folders without an image"),
    ):
        if paths:
            names = [os.path.relpath(entry, path) for entry in paths]
            parts.append(f"{len(paths)} {one if len(paths) == 1 else several} ({some_of(names, _MOST_NAMED)})")
    if found.without_volume:
        kinds = [f"{os.path.relpath(entry, path)}: {kind}" for entry, kind in found.without_volume.items()]
        parts.append(f"{counted(len(kinds), 'DICOM folder')} without a volume ({some_of(kinds, _MOST_NAMED)})")
    return (f"{path}: left out: {'; '.join(parts)}",) if parts else ()
