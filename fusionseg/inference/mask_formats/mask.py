"""A mask with everything that a file format stores, and the interface of a format."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.formats.readers import Readers

HASH_DIGITS = 14
"""Hexadecimal digits of a hash. The text with four hashes must fit into the 79 bytes of a NIfTI header field."""

OriginText = Callable[[str], str]
"""Makes the text about the origin of a mask from the digest of its content."""


@dataclass(frozen=True)
class Mask:
    """A predicted mask.

    Args:
        values: uint8 or uint16 (X, Y, Z), on the grid of the image.
        names: name of each value that may occur, the background 0 included.
        image: the (first) file of the image, or the folder of its DICOM series.
        readers: of the image files.
    """

    values: NDArray[Any]
    names: Mapping[int, str]
    image: Path
    readers: Readers

    @property
    def foreground(self) -> dict[int, str]:
        """Name of each value except the background."""
        return {value: name for value, name in sorted(self.names.items()) if value != 0}

    def affine(self) -> NDArray[np.float64]:
        """Read the affine of the image, 4x4 from voxel index to mm in RAS+."""
        return self.readers.read_geometry(self.image).affine


@dataclass(frozen=True)
class StoredMask:
    """The part of a mask file that shows whether this program wrote it.

    Args:
        origin: the text about the origin; empty if the file has none.
        digest: of the content, as it is now.
    """

    origin: str
    digest: str


class MaskFormat(Protocol):
    """A file format of masks."""

    suffix: str
    """End of the file names."""

    def check(self, image: Path, readers: Readers) -> None:
        """Refuse an image for which no mask of this format can be written.

        Args:
            image: the (first) file of the image, or the folder of its DICOM series.
            readers: of the image files.

        Raises:
            VolumeError: with the reason; its code is "package" for a package that is not installed, and "format" if the
                format does not suit the image.
        """

    def files(self, target: Path) -> list[Path]:
        """List the files that are written for a mask, `target` included."""

    def write(self, mask: Mask, target: Path, origin: OriginText) -> None:
        """Write a mask, whole or not at all.

        Args:
            mask: the mask.
            target: the file.
            origin: makes the text about its origin, which is stored too.

        Raises:
            WriteError: the file cannot be written.
            VolumeError: the mask cannot be written in this format.
        """

    def read(self, target: Path) -> StoredMask:
        """Read a mask file.

        Raises:
            VolumeError: the file cannot be read.
        """


def voxel_digest(values: NDArray[Any]) -> str:
    """A hash of the shape and the values of a mask.

    Args:
        values: uint8 or uint16 (X, Y, Z).
    """
    plain = np.ascontiguousarray(values, "<u2" if values.dtype.itemsize == 2 else None)
    return short_hash(repr(plain.shape).encode() + plain.tobytes())


def short_hash(content: bytes) -> str:
    """A hash of `HASH_DIGITS` hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=HASH_DIGITS // 2).hexdigest()


def is_mask_type(dtype: np.dtype[Any]) -> bool:
    """Test that masks are written in a data type."""
    return dtype.kind == "u" and dtype.itemsize in (1, 2)
