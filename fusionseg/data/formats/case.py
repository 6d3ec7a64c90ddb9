"""One case of a data set, and the names of image files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

IMAGE_SUFFIXES = (".nii.gz", ".nii")
CHANNEL = re.compile(r"(.+)_(\d{4})")
"""nnU-Net's names of channel files without suffix: NAME_0000, NAME_0001, ..."""


@dataclass(frozen=True)
class Case:
    """One patient or scan: an image, perhaps its label.

    Args:
        name: unique in the data set: the file's name without suffixes and channel number.
        images: one file per channel, or one file that is 3D (one channel) or 4D (channels last).
        label: None for a case without annotation.
        fold: the fold that validates on this case, where the datalist states it.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None
    fold: int | None = None


def is_image_file(path: Path) -> bool:
    """Whether a file is named as NIfTI; some systems write the suffix in capitals."""
    return path.name.lower().endswith(IMAGE_SUFFIXES)


def image_files(folder: Path) -> list[Path]:
    """NIfTI files of a folder, sorted; hidden ones (macOS leaves `._x.nii.gz` behind) are not data."""
    return sorted(file for file in folder.iterdir() if not file.name.startswith(".") and is_image_file(file))


def suffix(path: Path) -> str:
    """ ".nii.gz", ".nii", or what else stands last, as it is written."""
    length = next((len(s) for s in IMAGE_SUFFIXES if path.name.lower().endswith(s)), len(path.suffix))
    return path.name[len(path.name) - length :]


def stem(path: Path) -> str:
    """File name without folder and image suffix."""
    return path.name[: len(path.name) - len(suffix(path))] or path.name
