"""Files of a data set that are missing, or that no reader reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fusionseg.data.formats.case import Case, ChannelFiles, missing_channels
from fusionseg.data.formats.readers import Readers
from fusionseg.utils.errors import some_of

MAX_LISTED = 20
"""Number of problems that a message lists."""
_SEARCHED_PARENTS = 3


def wrong_base(source: Path, base: Path, cases: Sequence[Case]) -> list[str]:
    """Report a list none of whose relative paths exists: its base folder is another one.

    Args:
        source: the JSON file.
        base: the folder at which its relative paths start.
        cases: the listed cases.

    Returns:
        One message, or none.
    """
    listed = [path for case in cases for path in case.images if path.is_relative_to(base)]
    if not listed or any(os.path.lexists(path) for path in listed):
        return []
    first = listed[0].relative_to(base)
    others = [folder for folder in (source.parent, *source.parent.parents[:_SEARCHED_PARENTS]) if folder != base]
    found = next((folder for folder in others if os.path.lexists(folder / first)), None)
    remedy = (
        f"{first} is in {found}: set data.base_dir={found}"
        if found is not None
        else "set data.base_dir to the folder at which the paths start"
    )
    return [
        f"{source}: none of its {len(listed)} images is in {base}, the folder at which its relative paths start (the"
        f' first is {first}); {remedy} (--base-dir of a command; or "base_dir" in the list)'
    ]


def accept_missing(cases: Sequence[Case], channels: int) -> list[Case]:
    """Take the files that do not exist out of the channels of the cases. A case without any file stays as it is.

    Args:
        cases: of a data set.
        channels: number of channels of the data set.
    """
    accepted = []
    for case in cases:
        exist = [os.path.lexists(path) for path in case.images]
        if 1 < len(case.images) == channels and any(exist) and not all(exist):
            missing = [position for position, exists in enumerate(exist) if not exists]
            files = [path for path, exists in zip(case.images, exist, strict=True) if exists]
            case = replace(case, images=ChannelFiles(files, missing))
        accepted.append(case)
    return accepted


def missing_notes(source: Path, cases: Sequence[Case], channels: Sequence[str]) -> list[str]:
    """Name the cases that lack a channel, one note for each channel.

    Args:
        source: the JSON file.
        cases: of the data set.
        channels: their names.
    """
    notes = []
    for position, name in enumerate(channels):
        if lacking := [case.name for case in cases if position in missing_channels(case.images)]:
            verb = "case lacks" if len(lacking) == 1 else "cases lack"
            notes.append(
                f"{source}: {len(lacking)} {verb} the channel {name} ({some_of(lacking)}), which is 0 in every voxel;"
                " add the files, or leave it: data.missing_channels=zero accepts such cases"
            )
    return notes


def missing_packages(cases: Sequence[Case], readers: Readers) -> list[str]:
    """List the packages that are needed for the files of a data set and are not installed, each with a file.

    Args:
        cases: of the data set.
        readers: of the data set.
    """
    found: dict[str, Path] = {}
    kinds = set()
    for case in cases:
        for path in (*case.images, *([case.label] if case.label else [])):
            kind = "folder" if path.is_dir() else readers.suffix(path).lower()
            if kind not in kinds and (error := readers.missing_package(path)) is not None:
                found.setdefault(str(error), path)
            kinds.add(kind)
    return [f"{path}: {error}" for error, path in found.items()]


def file_problems(source: Path, cases: Sequence[Case], channels: int, readers: Readers) -> list[str]:
    """List the files that are missing or have a name that no reader reads, and cases that lack channel files.

    An image may be a folder, such as a DICOM series; reading it shows whether it holds one.

    Args:
        source: the JSON file.
        cases: of the data set.
        channels: number of channels of the data set.
        readers: of the data set.
    """
    problems = []
    for case in cases:
        count = len(case.images) + len(missing_channels(case.images))
        if count > 1 and count != channels:
            problems.append(
                f"{case.images[0]}: case {case.name} has {count} channel files, {source.name} "
                f"names {channels} channels; correct one of them"
            )
        for path in (*case.images, *([case.label] if case.label else [])):
            if path.is_dir():  # a DICOM series, or a folder that its reader refuses
                continue
            if not readers.is_image_file(path) and (path.exists() or path.suffix):
                problems.append(
                    f"{path}: no reader reads files of this name (expected {readers.expected}); convert"
                    f" case {case.name}, or name a reader for it (data.reader)"
                )
            elif not path.exists():
                problems.append(
                    f"{path}: file missing, case {case.name} needs it; copy it there, or take the case out "
                    f"of {source.name}"
                )
    return problems


def capped(problems: Sequence[str], source: Path | None = None) -> list[str]:
    """The first problems, and a line with the number of the others.

    Args:
        problems: messages.
        source: the JSON file, if `fusionseg check` lists all problems.
    """
    if len(problems) <= MAX_LISTED:
        return list(problems)
    more = f"... and {len(problems) - MAX_LISTED} more"
    return [*problems[:MAX_LISTED], more + (f"; fusionseg check {source.parent} lists all" if source else "")]
