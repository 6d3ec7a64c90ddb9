"""The origin of a mask on disk: `fusionseg predict` replaces only masks that it wrote itself.

The `descrip` field of a mask's NIfTI header holds hashes of the runs and options, of the image, and of the voxels. The
mask is recognised after its folder was moved, and after the command was killed. A mask that was corrected by hand has
other voxels, and is not replaced.
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
"""Hexadecimal digits of a hash. The text with four hashes must fit into the 79 bytes of the header field."""
_TEXT = re.compile(rf"fusionseg m=(\w{{{_HEX}}}) p=(\w{{{_HEX}}}) i=(\w{{{_HEX}}}) v=(\w{{{_HEX}}})")


@dataclass(frozen=True)
class MaskOrigin:
    """The origin of a mask, as hashes."""

    predictor: str
    """Hash of the weights and the options, see `predictor_hash`."""
    paths: str
    """Hash of the paths of the image."""
    content: str
    """Hash of the content of the image's files."""
    voxels: str
    """Hash of the mask."""

    def __str__(self) -> str:
        """The text for the header."""
        return f"fusionseg m={self.predictor} p={self.paths} i={self.content} v={self.voxels}"

    def is_of(self, case: Case) -> bool:
        """Tell whether the mask was made of the image of a case. The image may have been moved, or changed since."""
        return self.paths == _hash_of_paths(case) or self.content == _hash_of_content(case)


def origin_of(mask: NDArray[np.uint8] | NDArray[np.uint16], case: Case, predictor: str) -> MaskOrigin:
    """Describe the origin of a new mask.

    Args:
        mask: (X, Y, Z).
        case: the case that it was predicted for.
        predictor: the result of `predictor_hash`.
    """
    return MaskOrigin(predictor, _hash_of_paths(case), _hash_of_content(case), _hash_of_voxels(mask))


def predictor_hash(predictor: Predictor) -> str:
    """A hash of everything that the masks depend on: the weights of the networks, in any order, and the options."""
    members = []
    for member in predictor.members:
        own, asked = member.config.validation.overlap, predictor.options.overlap
        members.append([SourceFile.read(member.path).sha256, own if asked is None else asked])
    return _hash(json.dumps([sorted(members), predictor.options.flips]).encode())


def read_origin(path: Path) -> MaskOrigin | None:
    """Read the origin of a mask.

    Args:
        path: a NIfTI file.

    Returns:
        The origin; None if `fusionseg predict` did not write the file, or if its voxels were changed since.

    Raises:
        VolumeError: the file cannot be read as an image.
    """
    volume = read_volume(path)
    found = _TEXT.fullmatch(bytes(volume.header["descrip"].item()).rstrip(b"\0").decode("latin-1"))
    if found is None or volume.values.dtype != np.uint8:
        return None
    origin = MaskOrigin(*found.groups())
    return origin if origin.voxels == _hash_of_voxels(volume.values) else None


def cases_without_mask(cases: Sequence[Case], output: Path, predictor: str, *, skip_existing: bool) -> list[Case]:
    """List the cases that are to be predicted.

    Args:
        cases: all cases.
        output: the folder for the masks.
        predictor: the result of `predictor_hash`.
        skip_existing: keep masks that the same runs and options made of the same image. Files that the command did not
            write are kept too, with a warning.

    Raises:
        UserError: with every file that would be replaced and is not a mask of the same image that this command wrote.
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
            origin = read_origin(target)
        except VolumeError as error:
            problems.append(f"  {target}: {error.message}")
            continue
        if origin is None and skip_existing:
            kept.append(target.name)
        elif origin is None:
            problems.append(f"  {target}: was not written by fusionseg predict, or was changed since")
        elif not origin.is_of(case):
            problems.append(f"  {target}: is the mask of another image with the same name")
        elif not skip_existing or origin.predictor != predictor:
            due.append(case)
    if problems:
        more = [f"  ... and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
        keep = "" if skip_existing else ", or keep the masks that are there by --skip-existing"
        first = f"--output: {output}: these files are not replaced: choose another folder, or move them away{keep}"
        raise UserError([first, *problems[:MAX_LISTED], *more])
    if kept:
        log.warning("%s: these files are kept, although this command did not write them: %s", output, ", ".join(kept))
    return due


def mask_path(output: Path, case: Case) -> Path:
    """The file for the mask of a case.

    Args:
        output: the folder for the masks.
        case: the case.
    """
    return output / file_name(case.name, ".nii.gz")


def refuse_same_file(cases: Sequence[Case], output: Path) -> None:
    """Refuse cases whose names differ in upper and lower case only, on a file system that does not tell them apart.

    Args:
        cases: the cases.
        output: the folder for the masks.

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
                f"--output: {output}: the file system does not tell upper from lower case, and the masks of"
                f" {', '.join(alike)} would replace each other: choose another disk, or rename the images"
            )


def _hash_of_paths(case: Case) -> str:
    return _hash(b"\0".join(os.fsencode(path.resolve()) for path in case.images))


def _hash_of_content(case: Case) -> str:
    return _hash("".join(SourceFile.read(path).sha256 for path in case.images).encode())


def _hash_of_voxels(mask: NDArray[np.uint8] | NDArray[np.uint16]) -> str:
    values = np.ascontiguousarray(mask)
    return _hash(repr(values.shape).encode() + values.tobytes())


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=_HEX // 2).hexdigest()
