"""The bytes of image files, read to the last one: damage of a file and of its gzip stream is an error."""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fusionseg.data.formats.image_file import FETCH, VolumeError

CHUNK_BYTES = 1 << 20
SPECIAL = ("unreadable", "it is a pipe or a device, not a file", "copy its content into a file, or take it out")
"""The arguments of the error about such an image."""


@contextmanager
def file_errors() -> Iterator[None]:
    """Raise errors of the file system as `VolumeError`."""
    try:
        yield
    except FileNotFoundError:
        raise VolumeError(
            "missing", "there is no such file", "copy it there, or take the case out of the data set"
        ) from None
    except OSError as error:
        raise VolumeError("unreadable", f"{error.strerror or error}", "check the permissions and the disk") from error


def data_file(header: Path, name: str) -> Path:
    """The data file that a header names.

    A header may come from somebody else. A name that leads out of its folder would make any file of this machine an
    image, whose values masks and pictures show.

    Args:
        header: the header file.
        name: as the header has it: a path that starts at the folder of the header.

    Raises:
        VolumeError: the name leads out of the folder of the header, or its file is a pipe or a device.
    """
    folder = os.path.abspath(header.parent)
    path = Path(os.path.normpath(os.path.join(folder, name)))
    if not name or "\0" in name or not path.is_relative_to(folder) or path == Path(folder):
        raise VolumeError(
            "header",
            f"its header names the data file {name!r}, which is not in its folder",
            "put the data file beside the header, and name it there without a folder",
        )
    if is_special(path):
        raise VolumeError(*SPECIAL)
    return header.parent / path.relative_to(folder)


def is_special(path: Path) -> bool:
    """Tell whether a path is a pipe, a socket or a device, whose reading may never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def read_all(path: Path, *, gzip: bool) -> bytes:
    """Read a whole file.

    Args:
        path: the file.
        gzip: True decompresses it.

    Raises:
        VolumeError: as `file_errors` and `gunzip`.
    """
    with file_errors():
        if not gzip:
            return path.read_bytes()
        with path.open("rb") as file:
            return gunzip(file)


def read_start(path: Path, size: int, *, gzip: bool) -> bytes:
    """Read the first bytes of a file.

    Args:
        path: the file.
        size: the largest number of bytes of a file with gzip, after decompression.
        gzip: True decompresses them.

    Raises:
        VolumeError: as `read_all`.
    """
    with file_errors(), path.open("rb") as file:
        content = file.read(CHUNK_BYTES)
    if not gzip:
        return content
    try:
        return zlib.decompressobj(31).decompress(content, size)
    except zlib.error as error:
        raise _not_decompressed(error, first=True) from error


def gunzip(file: BinaryIO) -> bytes:
    """Decompress the rest of an open file. zlib verifies the checksum and the length of each member.

    Args:
        file: at the first byte of the gzip stream.

    Raises:
        VolumeError: its code is truncated, corrupt or trailing-data.
    """
    parts, stream, members = [], zlib.decompressobj(31), 1
    while chunk := file.read(CHUNK_BYTES):
        while chunk:
            if stream.eof:
                if not chunk.strip(b"\0"):  # tapes and block devices pad a file with zeros
                    break
                stream, members = zlib.decompressobj(31), members + 1
            try:
                parts.append(stream.decompress(chunk))
            except zlib.error as error:
                if members > 1 and not parts[-1]:
                    raise VolumeError(
                        "trailing-data", "it has other bytes after the end of its gzip stream", FETCH
                    ) from error
                raise _not_decompressed(error, first=not parts) from error
            chunk = stream.unused_data
            if stream.eof:
                parts.append(b"")  # an empty last part means that a member ended here without damage
    if not parts:
        return b""
    if not stream.eof:
        raise VolumeError("truncated", "the gzip stream ends before its end mark", FETCH)
    return b"".join(parts)


def refuse_wrong_length(surplus: int, shape: tuple[int, ...], dtype: str) -> None:
    """Refuse a file that holds fewer or more bytes than its header states.

    Args:
        surplus: number of bytes that are too many; negative if there are too few.
        shape: of the voxels, for the message.
        dtype: of the voxels, for the message.

    Raises:
        VolumeError: its code is truncated or trailing-data.
    """
    if surplus:
        code, much = ("truncated", "less") if surplus < 0 else ("trailing-data", "more")
        raise VolumeError(
            code,
            f"it holds {abs(surplus)} bytes {much} than its header states ({'x'.join(map(str, shape))} {dtype})",
            FETCH,
        )


def _not_decompressed(error: zlib.error, *, first: bool) -> VolumeError:
    if first and "header" in str(error):
        return VolumeError(
            "corrupt",
            "it is named .gz but is not gzip-compressed",
            f"rename it to .nii if it is plain NIfTI, or {FETCH}",
        )
    return VolumeError("corrupt", f"the gzip stream is damaged ({error})", FETCH)
