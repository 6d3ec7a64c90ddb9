"""The cases of a data set in nnU-Net's raw layout, versions 1 and 2."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, TypeVar

from fusionseg.data.formats.case import CHANNEL, Case
from fusionseg.data.formats.dataset_json import READ_KEYS, annotated_names, as_list
from fusionseg.data.formats.readers import Readers
from fusionseg.utils.errors import UserError

Key = TypeVar("Key", int, str)


def nnunet_cases(
    source: Path, content: dict[str, Any], channels: int, problems: list[str], readers: Readers
) -> tuple[list[Case], list[Case]]:
    """List the training and test cases of an nnU-Net data set.

    Args:
        source: the JSON file.
        content: of the file.
        channels: number of channels that the JSON names; 0 if it names none.
        problems: gets the faults of file names.
        readers: of the data set.

    Raises:
        UserError: there is no imagesTr, or no reader for `file_ending`.
    """
    ending = content.get("file_ending", ".nii.gz")
    if str(ending).lower() not in readers.suffixes:
        raise UserError(
            f"{source}: file_ending is {ending!r} (expected {' or '.join(readers.suffixes)}); convert the images, or"
            " name a reader for them (data.reader)"
        )
    root = source.parent
    if isinstance(content.get("dataset"), dict):  # version 2 may list its files instead of using imagesTr
        training = []
        for name, entry in content["dataset"].items():
            entry = entry if isinstance(entry, dict) else {}
            images, label = as_list(entry.get("images")), entry.get("label")
            if not images:
                problems.append(f'{source}: dataset.{name} has no "images"; list its channels\' files')
                continue
            if not all(isinstance(file, str) for file in [*images, label or ""]):
                problems.append(f"{source}: dataset.{name}: expected file names, got {entry}; correct the entry")
                continue
            annotated = annotated_names(entry, f"{source}: dataset.{name}", problems)
            paths = tuple(root / image for image in images)
            columns = {key: value for key, value in entry.items() if key not in READ_KEYS}
            label_file = root / label if label else None
            training.append(Case(name, paths, label_file, annotated=annotated, columns=columns))
    elif not (root / "imagesTr").is_dir():
        raise UserError(
            f"{root / 'imagesTr'}: no such folder; the nnU-Net layout needs it, check data.root and data.layout"
        )
    else:
        training = _nnunet_folder(root, "Tr", ending, channels, problems, readers)
    testing = _nnunet_folder(root, "Ts", ending, channels, problems, readers) if (root / "imagesTs").is_dir() else []
    return training, testing


def _nnunet_folder(
    root: Path, split: str, ending: str, channels: int, problems: list[str], readers: Readers
) -> list[Case]:
    """The cases of imagesTr and labelsTr, or of imagesTs and labelsTs. Suffixes may be in capitals."""
    images, labels = root / f"images{split}", root / f"labels{split}"
    found: dict[str, dict[int, Path]] = defaultdict(dict)
    for file in _files_with(ending, images, problems, readers):
        match = CHANNEL.fullmatch(readers.stem(file))
        if not match:
            problems.append(
                f"{file}: has no channel number; nnU-Net names it {readers.stem(file)}_0000{ending}, rename it"
            )
        else:
            _add_once(found[match[1]], int(match[2]), file, problems)
    annotated: dict[str, Path] = {}
    for file in _files_with(ending, labels, problems, readers) if labels.is_dir() else []:
        _add_once(annotated, readers.stem(file), file, problems)
    cases = []
    # A label without an image is a case too; its image is then reported as missing.
    for name in sorted(found.keys() | annotated):
        indices = sorted(found[name].keys() | set(range(channels or 1)))
        files = tuple(found[name].get(i, images / f"{name}_{i:04d}{ending}") for i in indices)
        cases.append(Case(name, files, annotated.get(name)))
    return cases


def _files_with(ending: str, folder: Path, problems: list[str], readers: Readers) -> list[Path]:
    """The image files of a folder; those without the ending of the data set are problems."""
    files = readers.image_files(folder)
    for file in files:
        if not file.name.lower().endswith(ending.lower()):
            problems.append(f"{file}: file_ending is {ending}; convert the file, or correct dataset.json")
    return [file for file in files if file.name.lower().endswith(ending.lower())]


def _add_once(found: dict[Key, Path], key: Key, file: Path, problems: list[str]) -> None:
    if key in found:
        problems.append(f"{file}: {found[key].name} has the same name but for its suffix; remove one of them")
    found.setdefault(key, file)
