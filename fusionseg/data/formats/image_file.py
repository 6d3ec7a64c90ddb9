"""The content of one image, as a reader returns it, and the error of a file that cannot be read.

An image is a file, several files (a header and its data), or a folder (a DICOM series). One path names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Severity = Literal["error", "warning"]
FETCH = "fetch or export the file again"
"""The remedy for a damaged file."""


class FileProblem(NamedTuple):
    """A fault of one file that does not keep its voxels from being read."""

    severity: Severity
    code: str
    message: str
    remedy: str


class VolumeError(Exception):
    """A file that holds no usable volume.

    Args:
        code: one of the codes of `fusionseg check`, such as "truncated".
        message: the fault.
        remedy: the advice to the user.
    """

    def __init__(self, code: str, message: str, remedy: str) -> None:
        super().__init__(code, message, remedy)
        self.code, self.message, self.remedy = code, message, remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}"


@dataclass(frozen=True)
class FileGeometry:
    """The shape and the position in space of an image file.

    Args:
        shape: (X, Y, Z), or (C, X, Y, Z) for a file with several channels.
        affine: 4x4, from voxel index to mm in RAS+. NaN where the file gives no usable one; then `problems` has an
            error.
        problems: faults of the geometry.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    problems: tuple[FileProblem, ...] = ()


@dataclass(frozen=True)
class ImageFile:
    """The voxels and the position in space of an image file.

    Args:
        voxels: (X, Y, Z), or (C, X, Y, Z) for a file with several channels; integers or floats.
        affine: as in `FileGeometry`.
        stored_type: data type of the stored numbers, for reports; empty is that of `voxels`.
        problems: faults of the geometry.
        partial: True for a label that may cover a part of its image's grid; the rest of the grid is background.
    """

    voxels: NDArray[Any]
    affine: NDArray[np.float64]
    stored_type: str = ""
    problems: tuple[FileProblem, ...] = ()
    partial: bool = False


@runtime_checkable
class Reader(Protocol):
    """A reader of image files, built in or a user's own.

    A reader may have further methods. `read_geometry(path) -> (shape, affine)` or a `FileGeometry` reads no voxels;
    without it, `read` takes its place. `files(path) -> list[Path]` lists all files of the image, if these are several.
    `reads_folder(path) -> bool` tells that a folder is one image; then all methods get the folder.
    `is_image_alone(path) -> bool` tells that a file is an image, where other files of its suffix are slices. The
    attribute `data_suffixes` has the suffixes of files that belong to a header file.
    """

    suffixes: Sequence[str]
    """File-name suffixes that the reader reads, such as (".npy",); upper and lower case are the same."""

    def read(self, path: Path) -> ImageFile | tuple[NDArray[Any], NDArray[Any]]:
        """Read a file.

        Returns:
            Its content; or a pair of voxels, (X, Y, Z) or (C, X, Y, Z), and the 4x4 affine from voxel index to mm in
            RAS+.

        Raises:
            VolumeError: the file holds no usable volume. Other exceptions are reported as such an error.
        """
