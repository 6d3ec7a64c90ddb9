"""A label in several files: a folder with a mask for each class, as TotalSegmentator writes it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MASK_SUFFIXES = (".nii.gz", ".nii")
"""Suffixes of masks, the longest first."""


class MaskFolder(type(Path())):  # type: ignore[misc]
    """The path of a folder with masks, and the label value of each mask.

    It is equal to the plain path of the folder. The values belong to the whole data set: a class has the same value in
    every case, also where a case has no voxel of it.
    """

    values: Mapping[str, int]
    """The label value of each mask by the name of its file, without the suffix."""

    @staticmethod
    def of(folder: Path, values: Mapping[str, int]) -> MaskFolder:
        """Make the path of a folder.

        Args:
            folder: with the masks.
            values: see the attribute.
        """
        made = MaskFolder(folder)
        made.values = dict(values)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return MaskFolder.of, (Path(os.fspath(self)), self.values)


def mask_files(folder: Path) -> list[Path]:
    """List the masks in a folder, sorted by name. Hidden files are no masks.

    Args:
        folder: that may hold masks.
    """
    names = sorted(os.listdir(folder))
    return [Path(folder, name) for name in names if name[:1] != "." and name.lower().endswith(MASK_SUFFIXES)]


def mask_name(file: Path) -> str:
    """The name of the class of a mask: that of the file without its suffix.

    Args:
        file: of the mask.
    """
    suffix = next((suffix for suffix in MASK_SUFFIXES if file.name.lower().endswith(suffix)), "")
    return file.name[: len(file.name) - len(suffix)]
