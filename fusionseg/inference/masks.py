"""Masks on disk: which ones `fusionseg predict` wrote itself, and so may write again.

A mask says of itself, in the `descrip` field of its NIfTI header, by which runs and options and of which image it was
made, and what its voxels are. It stays recognisable when the folder is moved or the command was killed; once somebody
has corrected it by hand, it is theirs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.formats.dataset import Case
from fusionseg.data.formats.image_file import VolumeError
from fusionseg.data.formats.readers.nifti import read_volume
from fusionseg.data.preprocessing.record import SourceFile
from fusionseg.inference.predictor import Predictor
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import file_name, partial_path

log = logging.getLogger("fusionseg")

MAX_LISTED = 20
_HEX = 14
_TEXT = re.compile(rf"fusionseg m=(\w{{{_HEX}}}) p=(\w{{{_HEX}}}) i=(\w{{{_HEX}}}) v=(\w{{{_HEX}}})")


@dataclass(frozen=True)
class Mark:
    """The origin of a mask."""

    maker: str
    """Hash of the runs and the options."""
    place: str
    """Hash of the paths of the image."""
    image: str
    """Hash of the content of the image's files."""
    voxels: str
    """Hash of the mask."""

    def __str__(self) -> str:
        """The header's text; the field has 79 bytes."""
        return f"fusionseg m={self.maker} p={self.place} i={self.image} v={self.voxels}"

    def is_of(self, case: Case) -> bool:
        """Whether it was made of the image of `case`, which may have been moved, or changed in its place."""
        return self.place == _place(case) or self.image == _content(case)


def make_mark(maker: str, case: Case, mask: NDArray[np.uint8]) -> Mark:
    """The mark of a new mask."""
    return Mark(maker, _place(case), _content(case), _voxels(mask))


def maker_of(predictor: Predictor) -> str:
    """A hash of what decides the masks: the weights, in whatever order, and the options."""
    members = []
    for member in predictor.members:
        own, asked = member.config.validation.overlap, predictor.options.overlap
        members.append([SourceFile.read(member.path).sha256, own if asked is None else asked])
    return _hash(json.dumps([sorted(members), predictor.options.flips]).encode())


def read_mark(path: Path) -> Mark | None:
    """The mark of a mask; None for any other file, and for a mask that was changed since.

    Raises:
        VolumeError: the file cannot be read as an image.
    """
    volume = read_volume(path)
    found = _TEXT.fullmatch(bytes(volume.header["descrip"].item()).rstrip(b"\0").decode("latin-1"))
    if found is None or volume.values.dtype != np.uint8:
        return None
    mark = Mark(*found.groups())
    return mark if mark.voxels == _voxels(volume.values) else None


def masks_to_make(cases: Sequence[Case], output: Path, maker: str, *, skip_existing: bool) -> list[Case]:
    """The cases whose masks are to be made.

    Args:
        maker: what `maker_of` gives.
        skip_existing: keep the masks that are there already and were made by the same runs and options of the same
            image; keep what others have put there, and say so.

    Raises:
        UserError: with every file that would be replaced and is not a mask of the same image by this command.
    """
    due: list[Case] = []
    problems: list[str] = []
    kept: list[str] = []
    for case in cases:
        target = mask_path(output, case)
        if not os.path.lexists(target):
            due.append(case)
            continue
        try:
            mark = read_mark(target)
        except VolumeError as error:
            problems.append(f"  {target}: {error.message}")
            continue
        if mark is None and skip_existing:
            kept.append(target.name)
        elif mark is None:
            problems.append(f"  {target}: was not written by fusionseg predict, or was changed since")
        elif not mark.is_of(case):
            problems.append(f"  {target}: is the mask of another image of that name")
        elif not skip_existing or mark.maker != maker:
            due.append(case)
    if problems:
        more = [f"  ... and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
        keep = "" if skip_existing else ", or keep what is there by --skip-existing"
        first = f"--output: {output}: these files are not replaced: choose another folder, or move them away{keep}"
        raise UserError([first, *problems[:MAX_LISTED], *more])
    if kept:
        log.warning("%s: kept, though not written by this command: %s", output, ", ".join(kept))
    return due


def mask_path(output: Path, case: Case) -> Path:
    """Return the file of the mask of a case.

    Args:
        output: folder of the masks.
        case: its name is the name of the file.
    """
    return output / file_name(case.name, ".nii.gz")


def refuse_one_name(cases: Sequence[Case], output: Path) -> None:
    """Refuse cases whose masks would be one file: their names differ in case alone, and the disk takes A for a.

    Raises:
        UserError: with the names.
    """
    names = {case.name: unicodedata.normalize("NFC", case.name).casefold() for case in cases}
    count = Counter(names.values())
    if alike := sorted(name for name, folded in names.items() if count[folded] > 1):
        there = next(folder for folder in (output, *output.absolute().parents) if os.path.isdir(folder))
        probe = partial_path(there / "probe")
        probe.touch()
        one_file = os.path.exists(probe.with_name(probe.name.upper()))
        with suppress(FileNotFoundError):
            probe.unlink()
        if one_file:
            raise UserError(
                f"--output: {output}: the disk takes upper and lower case for the same, and the masks of"
                f" {', '.join(alike)} would replace each other: choose another disk, or rename the images"
            )


def _place(case: Case) -> str:
    return _hash(b"\0".join(os.fsencode(path.resolve()) for path in case.images))


def _content(case: Case) -> str:
    return _hash("".join(SourceFile.read(path).sha256 for path in case.images).encode())


def _voxels(mask: NDArray[np.uint8]) -> str:
    values = np.ascontiguousarray(mask)
    return _hash(repr(values.shape).encode() + values.tobytes())


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=_HEX // 2).hexdigest()
