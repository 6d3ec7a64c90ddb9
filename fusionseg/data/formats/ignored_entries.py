"""Entries of a data set that would be ignored silently: misspelt keys, unlisted files, wrong numbers of cases.

An entry that must be a mistake is a fault, and a training does not start with it. Any other entry is a note, which
`fusionseg check` and the start of a training print once. Faults and notes are texts of the form "message; remedy".
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fusionseg.data.formats.case import Case
from fusionseg.data.formats.readers import Readers
from fusionseg.utils.errors import some_of

LISTS = ("training", "validation", "test", "testing")
_NAMES = (("labels",), ("modality", "channel_names"))
_TOP_LEVEL = {
    "listed": (("training",), ("validation",), ("test", "testing"), *_NAMES),
    "nnunet": (("file_ending",), *_NAMES),
}
"""Keys that are read, by layout. Each group needs one of its keys."""
_OTHERS = (
    "base_dir",
    "numTraining",
    "numTest",
    "name",
    "dataset",
    "dataset_name",
    "description",
    "release",
    "reference",
)
_ENTRY = (("image",), ("label",), ("fold",), ("annotated",))
_LABEL_KEYS = ("seg", "segmentation", "mask", "lbl", "gt", "ground_truth", "annotation", "target", "labels")
_ENTRY_NNUNET = (("images",), ("label",), ("annotated",))
_SIMILAR = 0.8
_OTHER_FORMATS = (".mgz", ".mnc", ".h5", ".zarr", ".b2nd", ".tif", ".tiff", ".png", ".jpg")
_PACKED = (".npz", ".gz", ".bz2", ".zip")


def misspelt_keys(source: Path, content: dict[str, Any], layout: str) -> list[str]:
    """List the faults of keys that are not read and are similar to a missing key.

    Args:
        source: the JSON file.
        content: of the file.
        layout: of the data set.
    """
    top_level = _TOP_LEVEL["nnunet" if layout == "nnunet" else "listed"]
    faults = [
        f'{source}: the key "{key}" is not read (did you mean "{meant}"?); rename it'
        for key, meant in _near_misses(content, top_level)
    ]
    lists = [("dataset", _ENTRY_NNUNET)] if layout == "nnunet" else [(name, _ENTRY) for name in LISTS]
    for name, families in lists:
        entries = content.get(name)
        numbered = entries.items() if isinstance(entries, dict) else enumerate(_list(entries))
        found: dict[tuple[str, str], list[int | str]] = {}
        for place, entry in numbered:
            if isinstance(entry, dict):
                for pair in _near_misses(entry, families):
                    found.setdefault(pair, []).append(place)
        for (key, meant), places in found.items():
            faults.append(
                f'{source}: the key "{key}" of {name}[{places[0]}]'
                + (f" and {len(places) - 1} more" if len(places) > 1 else "")
                + f' is not read (did you mean "{meant}"?); rename it'
            )
    return faults


def unread_files(source: Path, content: dict[str, Any], readers: Readers, faults: list[str], notes: list[str]) -> None:
    """Note keys of listed cases that name image files and are not read.

    A key with a usual name of labels, beside no `label`, is a fault: a training would start without these labels.

    Args:
        source: the JSON file.
        content: of the file.
        readers: of the data set.
        faults: gets the faults.
        notes: gets the notes.
    """
    known = {key for family in _ENTRY for key in family}
    for name in LISTS:
        found: dict[str, list[bool]] = {}
        for entry in _list(content.get(name)):
            for key, value in entry.items() if isinstance(entry, dict) else ():
                if key not in known and isinstance(value, str) and readers.is_image_file(Path(value)):
                    found.setdefault(key, []).append("label" in entry)
        for key, labelled in found.items():
            is_fault = key.lower() in _LABEL_KEYS and not any(labelled)
            (faults if is_fault else notes).append(
                f'{source}: the key "{key}" of {len(labelled)} cases of {name} names image files and is not read'
                f" (image, label and fold are); "
                + ('rename it to "label"' if is_fault else "rename it, or leave it if it is not needed")
            )


def unread_lists(source: Path, content: dict[str, Any], faults: list[str], notes: list[str]) -> None:
    """Note lists of cases under an unknown key; without a training list, they are faults.

    Args:
        source: the JSON file.
        content: of the file.
        faults: gets the faults.
        notes: gets the notes.
    """
    for key, value in content.items():
        if key in LISTS or not isinstance(value, list):
            continue
        if any(isinstance(entry, dict) and {"image", "label"} & entry.keys() for entry in value):
            where = notes if "training" in content else faults
            where.append(
                f'{source}: the {len(value)} cases under "{key}" are not read; name the list {", ".join(LISTS[:-1])}'
            )


def wrong_numbers(
    source: Path, content: dict[str, Any], training: Sequence[Case], testing: Sequence[Case] | None
) -> list[str]:
    """List the numbers of cases that the JSON states wrongly. They are the only sign of an incomplete copy.

    Args:
        source: the JSON file.
        content: of the file.
        training: the training cases that were found.
        testing: the test cases; None if the data set was copied without its test images, which a training does not
            need.
    """
    faults = []
    counts = {"numTraining": (len(training), "training")}
    if testing is not None:
        counts["numTest"] = (len(testing), "test")
    validated = len(content["validation"]) if isinstance(content.get("validation"), list) else 0
    for key, (found, kind) in counts.items():
        stated = _integer(content.get(key))
        if stated is None or stated == found or (key == "numTraining" and stated == found - validated):
            continue
        # Many published data sets state 0 tests although they list some. No case is missing then.
        if key == "numTest" and stated == 0:
            continue
        faults.append(
            f"{source}: {key} is {stated}, but there are {found} {kind} cases; copy the missing files, or correct {key}"
        )
    return faults


def hidden_entries(source: Path, names: Sequence[str]) -> list[str]:
    """List the notes about hidden files in the lists of cases. On some disks, macOS writes one beside each file.

    Args:
        source: the JSON file.
        names: of the hidden files.
    """
    if not names:
        return []
    return [
        f"{source}: {_count(names, 'listed file')} hidden and left out ({some_of(names)}); take them out of the list"
    ]


def unlisted_files(source: Path, base: Path, cases: Iterable[Case], readers: Readers, *, compare: bool) -> list[str]:
    """List the notes about images and labels in the folders of a data set that do not belong to it.

    Args:
        source: the JSON file.
        base: the folder at which the listed paths start.
        cases: of the data set.
        readers: of the data set.
        compare: True if the JSON has to list all files of the folders; False notes files of other formats only.
    """
    paths = {path for case in cases for path in (*case.images, case.label) if path is not None}
    listed = {os.path.normpath(path) for path in paths}
    listed |= {os.path.normpath(file) for path in paths if not path.is_dir() for file in readers.files(path)}
    folders = sorted(base / name for name in ("imagesTr", "labelsTr", "imagesTs"))
    notes = []
    for folder in folders:
        if not folder.is_dir():
            continue
        files = [file for file in sorted(folder.iterdir()) if not file.name.startswith(".")]
        others = [file for file in files if os.path.normpath(file) not in listed]
        unlisted = [file.name for file in others if readers.is_image_file(file) or readers.reads_folder(file)]
        if compare and unlisted:
            notes.append(
                f"{folder}: {_count(unlisted, 'file')} not listed in {source.name} and left out ({some_of(unlisted)});"
                " list them if they belong to the data set"
            )
        notes += _foreign_note(folder, files, readers)
    return notes


def unlabelled_cases(training: Sequence[Case]) -> list[str]:
    """List the notes about training cases without a label, which only a pre-training can use.

    Args:
        training: the training cases.
    """
    names = [case.name for case in training if case.label is None]
    if not names or len(names) == len(training):
        return []
    verb = "has no label and is" if len(names) == 1 else "have no label and are"
    return [
        f"{len(names)} of {len(training)} training cases {verb} left out: {some_of(names)}; add the label files (only a"
        " pre-training can use a case without)"
    ]


def foreign_files(folder: Path, readers: Readers) -> list[str]:
    """List the notes about images of other formats in a folder of inputs.

    Args:
        folder: or a single file, which gives no notes.
        readers: that are in use.
    """
    return _foreign_note(folder, sorted(folder.iterdir()), readers) if folder.is_dir() else []


def _foreign_note(folder: Path, files: Iterable[Path], readers: Readers) -> list[str]:
    others = (file for file in files if not file.name.startswith(".") and not readers.is_image_file(file))
    names = [file.name for file in others if file.suffix.lower() in (*_OTHER_FORMATS, *_PACKED)]
    if not names:
        return []
    return [
        f"{folder}: {_count(names, 'file')} of an unknown format and left out ({some_of(names)}); convert them to"
        " .nii.gz, or name a reader for them (data.reader)"
    ]


def _near_misses(content: dict[str, Any], families: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """Pairs of an unknown key and the missing known key that it is similar to."""
    known = {key for family in families for key in family} | {*_OTHERS}
    absent = [key for family in families if not set(family) & content.keys() for key in family]
    found = []
    for key in content:
        if isinstance(key, str) and key not in known:
            near = difflib.get_close_matches(key.lower(), absent, n=1, cutoff=_SIMILAR)
            found += [(key, name) for name in near]
    return found


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _integer(value: Any) -> int | None:
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _count(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {what} is" if len(names) == 1 else f"{len(names)} {what}s are"
