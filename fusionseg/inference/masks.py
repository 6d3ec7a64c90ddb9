"""The origin of a mask on disk: `fusionseg predict` replaces only masks that it wrote itself.

Each file format stores a text with hashes of the runs and options, of the image, and of the mask. The mask is
recognised after its folder was moved, and after the command was killed. A mask that was corrected by hand has another
content, and is not replaced.
"""

from __future__ import annotations

import json
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fusionseg.data.formats.case import Case
from fusionseg.data.formats.image_file import VolumeError
from fusionseg.data.preprocessing.record import SourceFile, files_of
from fusionseg.inference.mask_formats.choice import choose_format
from fusionseg.inference.mask_formats.mask import HASH_DIGITS, MaskFormat, short_hash
from fusionseg.inference.predictor import Predictor
from fusionseg.runs.json_files import JsonObject
from fusionseg.runs.paths import content_file
from fusionseg.utils.errors import UserError, first_of
from fusionseg.utils.files import file_name, partial_path

log = logging.getLogger("fusionseg")

_TEXT = re.compile("fusionseg " + " ".join(rf"{key}=(\w{{{HASH_DIGITS}}})" for key in "mpiv"))


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
        """The text for the file."""
        return f"fusionseg m={self.predictor} p={self.paths} i={self.content} v={self.voxels}"

    def is_of(self, case: Case) -> bool:
        """Tell whether the mask was made of the image of a case. The image may have been moved, or changed since."""
        return self.paths == _hash_of_paths(case) or self.content == _hash_of_content(case)

    def has_content_of(self, case: Case) -> bool:
        """Tell whether the mask was made of the files of a case as they are now."""
        return self.content == _hash_of_content(case)


def origin_of(case: Case, predictor: str, voxels: str) -> MaskOrigin:
    """Describe the origin of a new mask.

    Args:
        case: the case that it was predicted for.
        predictor: the result of `predictor_hash`.
        voxels: hash of the mask, as its file format makes it.
    """
    return MaskOrigin(predictor, _hash_of_paths(case), _hash_of_content(case), voxels)


def weight_digests(predictor: Predictor) -> list[str]:
    """The SHA-256 of the checkpoint of each network; of a divided one, that of its index."""
    return [SourceFile.read(content_file(member.path)).sha256 for member in predictor.members]


def predictor_hash(
    predictor: Predictor, digests: Sequence[str] | None = None, postprocessing: JsonObject | None = None
) -> str:
    """A hash of everything that the masks depend on: the weights of the networks, in any order, and the options.

    Args:
        predictor: the network, or an ensemble.
        digests: the result of `weight_digests`, if it is known.
        postprocessing: of the masks, as plain values; None without one.
    """
    members = []
    for member, digest in zip(predictor.members, digests or weight_digests(predictor), strict=True):
        own, asked = member.config.validation.overlap, predictor.options.overlap
        members.append([digest, own if asked is None else asked])
    options: list[object] = [predictor.options.flips]
    if predictor.options.skip_air:
        options.append("skip_air")
    if predictor.options.precision is not None:  # without it, the hash is that of earlier versions
        options.append(predictor.options.precision)
    if postprocessing is not None:
        options.append(postprocessing)
    return short_hash(json.dumps([sorted(members), *options]).encode())


def read_origin(path: Path, mask_format: MaskFormat) -> MaskOrigin | None:
    """Read the origin of a mask.

    Args:
        path: the file.
        mask_format: its format.

    Returns:
        The origin; None if `fusionseg predict` did not write the file, or if its content was changed since.

    Raises:
        VolumeError: the file cannot be read.
    """
    stored = mask_format.read(path)
    origin = parse_origin(stored.origin)
    return origin if origin is not None and origin.voxels == stored.digest else None


def parse_origin(text: str) -> MaskOrigin | None:
    """Read the text about an origin; None if it is another text."""
    found = _TEXT.fullmatch(text)
    return None if found is None else MaskOrigin(*found.groups())


def cases_without_mask(
    cases: Sequence[Case],
    output: Path,
    predictor: str,
    *,
    format_name: str,
    skip_existing: bool,
    lacks_files: Callable[[Case, MaskOrigin], bool] = lambda case, origin: False,
) -> list[Case]:
    """List the cases that are to be predicted.

    Args:
        cases: all cases.
        output: the folder for the masks.
        predictor: the result of `predictor_hash`.
        format_name: of the masks, see `choose_format`.
        skip_existing: keep masks that the same runs and options made of the same image. Files that the command did not
            write are kept too, with a warning. The content of an image is compared if it is newer than its mask.
        lacks_files: tells that a case with a mask of this origin lacks another file, and is predicted again.

    Raises:
        UserError: with every file that would be replaced and is not a mask of the same image that this command wrote.
    """
    due: list[Case] = []
    problems: list[str] = []
    kept: list[str] = []
    for case in cases:
        mask_format = choose_format(format_name, case.images[0])
        target = mask_path(output, case, mask_format)
        if not any(os.path.lexists(path) for path in mask_format.files(target)):
            due.append(case)
            continue
        try:
            origin = read_origin(target, mask_format)
        except VolumeError as error:
            problems.append(f"  {target}: {error.message}")
            continue
        if origin is None and skip_existing:
            kept.append(target.name)
        elif origin is None:
            problems.append(f"  {target}: was not written by fusionseg predict, or was changed since")
        elif not _is_readable(case):
            due.append(case)  # the prediction reports the image, and writes nothing
        elif not origin.is_of(case):
            problems.append(f"  {target}: is the mask of another image with the same name")
        elif not (
            skip_existing
            and origin.predictor == predictor
            and _is_current(case, target, origin)
            and not lacks_files(case, origin)
        ):
            due.append(case)
    if problems:
        keep = "" if skip_existing else ", or keep the masks that are there by --skip-existing"
        first = f"--output: {output}: these files are not replaced: choose another folder, or move them away{keep}"
        raise UserError([first, *first_of(problems)])
    if kept:
        log.warning("%s: these files are kept, although this command did not write them: %s", output, ", ".join(kept))
    return due


def mask_path(output: Path, case: Case, mask_format: MaskFormat) -> Path:
    """The file for the mask of a case.

    Args:
        output: the folder for the masks.
        case: the case.
        mask_format: of the mask.
    """
    return output / file_name(case.name, mask_format.suffix)


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


def _is_readable(case: Case) -> bool:
    return all(os.access(path, os.R_OK) for path in case.images)


def _is_current(case: Case, mask: Path, origin: MaskOrigin) -> bool:
    """Tell whether a mask is there, and its image has not changed since. The content of a newer image is compared."""
    if not mask.exists():
        return False
    newest = max(file.stat().st_mtime_ns for path in case.images for file in files_of(path))
    return newest <= mask.stat().st_mtime_ns or origin.content == _hash_of_content(case)


def _hash_of_paths(case: Case) -> str:
    return short_hash(b"\0".join(os.fsencode(path.resolve()) for path in case.images))


def _hash_of_content(case: Case) -> str:
    return short_hash("".join(SourceFile.read(path).sha256 for path in case.images).encode())
