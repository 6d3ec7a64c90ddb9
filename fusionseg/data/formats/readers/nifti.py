"""The reader of NIfTI files: it reads a file to its last byte and reports damage.

nibabel's own loading stops after the last voxel that it needs, and repairs headers silently. A check has to see the
damage, so this module reads the bytes and lets nibabel interpret the header only.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.volumeutils import apply_read_scaling

from fusionseg.config.registry import readers
from fusionseg.data.formats.image_file import FileGeometry, ImageFile, VolumeError
from fusionseg.data.formats.readers.nifti_geometry import UNKNOWN_AFFINE, affine_of

Array = np.ndarray[Any, np.dtype[Any]]

CHUNK_BYTES = 1 << 20
HEADER_BYTES = 1 << 20  # the header, and extensions of a usual size
SUFFIXES = (".nii.gz", ".nii")
FETCH = "fetch or export the file again"


@dataclass(frozen=True)
class RawHeader:
    """The header of a NIfTI file.

    Args:
        header: nibabel's, exactly as it is in the file; nothing is repaired.
        dtype: data type of the stored numbers.
        shape: as stored, the channels last.
        offset: the byte at which the voxels begin.
        slope: factor of the stored numbers; None if these are the values.
        intercept: added after the factor; None if the stored numbers are the values.
    """

    header: Any
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    slope: float | None
    intercept: float | None

    @property
    def scaled(self) -> bool:
        """True if a slope and an intercept turn the stored numbers into values."""
        return self.slope is not None and (self.slope, self.intercept) != (1, 0)


@dataclass(frozen=True)
class RawVolume:
    """The content of a NIfTI file: the scaled values of its voxels, in the file's order of axes, and its header."""

    values: Array
    header: Any
    dtype: str
    """Data type of the stored numbers, followed by `scaled` if a slope was applied."""


@readers.register("nifti")
class NiftiReader:
    """The built-in reader: NIfTI-1 and NIfTI-2 in one file, compressed or not."""

    suffixes = SUFFIXES

    def read(self, path: Path) -> ImageFile:
        """Read a file to its last byte.

        Args:
            path: a file whose name ends in one of the suffixes.

        Raises:
            VolumeError: as `read_volume`.
        """
        volume = read_volume(path)
        shape = _without_trailing_ones(volume.values.shape)
        geometry = _geometry(volume.header, shape)
        voxels = volume.values.reshape(shape, order="F")
        return ImageFile(
            np.moveaxis(voxels, 3, 0) if len(shape) == 4 else voxels, geometry.affine, volume.dtype, geometry.problems
        )

    def read_geometry(self, path: Path) -> FileGeometry:
        """Read the header of a file, and no voxel.

        Args:
            path: a file whose name ends in one of the suffixes.

        Raises:
            VolumeError: as `read_header`.
        """
        raw = read_header(path)
        return _geometry(raw.header, _without_trailing_ones(raw.shape))


def read_header(path: Path) -> RawHeader:
    """Read the header of a NIfTI file, and no voxel.

    Args:
        path: a file whose name ends in .nii.gz or .nii.

    Raises:
        VolumeError: as `read_volume`, for damage that the header shows.
    """
    _check_name(path)
    with _reading(), open(path, "rb") as file:
        content = file.read(CHUNK_BYTES)
    if _is_gzip(path):
        try:
            content = zlib.decompressobj(31).decompress(content, HEADER_BYTES)
        except zlib.error as error:
            raise _not_decompressed(error, first=True) from error
    return _header(path, content)


def read_volume(path: Path) -> RawVolume:
    """Read a whole NIfTI file, and verify its checksum and length.

    The values are those that nibabel gives, scaled in float64.

    Args:
        path: a file whose name ends in .nii.gz or .nii.

    Raises:
        VolumeError: its code is missing, unreadable, truncated, corrupt, trailing-data or header.
    """
    _check_name(path)
    with _reading():
        content = _gunzip(path) if _is_gzip(path) else path.read_bytes()
    raw = _header(path, content)
    dtype, shape = raw.dtype, raw.shape
    count = int(np.prod(shape, dtype=np.int64))
    surplus = len(content) - (raw.offset + count * dtype.itemsize)
    if surplus:
        code, much = ("truncated", "less") if surplus < 0 else ("trailing-data", "more")
        raise VolumeError(
            code,
            f"it holds {abs(surplus)} bytes {much} than its header states ({'x'.join(map(str, shape))} {dtype.name})",
            FETCH,
        )
    values: Array = np.frombuffer(content, dtype, count, raw.offset).reshape(shape, order="F")
    if not raw.scaled:
        return RawVolume(values, raw.header, dtype.name)
    with np.errstate(over="ignore", invalid="ignore"):  # the reader of a case reports values that are not finite
        values = apply_read_scaling(values, np.float64(raw.slope), np.float64(raw.intercept))
    return RawVolume(values, raw.header, f"{dtype.name} scaled")


def _geometry(header: Any, shape: tuple[int, ...]) -> FileGeometry:
    if len(shape) not in (3, 4):  # refused by the caller, who knows the purpose of the file
        return FileGeometry(shape, UNKNOWN_AFFINE)
    x, y, z = shape[:3]
    return FileGeometry((*shape[3:], x, y, z), *affine_of(header, (x, y, z)))


def _without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without the last axes of length 1; three axes always stay."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return tuple(map(int, shape))


def _check_name(path: Path) -> None:
    if not path.name.lower().endswith(SUFFIXES):
        raise VolumeError("header", "it is not named as NIfTI", f"convert it to {' or '.join(SUFFIXES)}")


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


@contextmanager
def _reading() -> Iterator[None]:
    """Raise errors of the file system as `VolumeError`."""
    try:
        yield
    except FileNotFoundError:
        raise VolumeError(
            "missing", "there is no such file", "copy it there, or take the case out of the data set"
        ) from None
    except OSError as error:
        raise VolumeError("unreadable", f"{error.strerror or error}", "check the permissions and the disk") from error


def _gunzip(path: Path) -> bytes:
    """Decompress a whole file. zlib verifies the checksum and the length of each member."""
    parts, stream, members = [], zlib.decompressobj(31), 1
    with open(path, "rb") as file:
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


def _not_decompressed(error: zlib.error, *, first: bool) -> VolumeError:
    if first and "header" in str(error):
        return VolumeError(
            "corrupt",
            "it is named .gz but is not gzip-compressed",
            f"rename it to .nii if it is plain NIfTI, or {FETCH}",
        )
    return VolumeError("corrupt", f"the gzip stream is damaged ({error})", FETCH)


def _header(path: Path, content: bytes) -> RawHeader:
    if not content:
        raise VolumeError("truncated", "it is empty", FETCH)
    if not _is_gzip(path) and content[:2] == b"\x1f\x8b":
        raise VolumeError("header", "it is gzip-compressed but named .nii", "rename it to .nii.gz")
    sizes = {int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big")}
    kind: Any = nibabel.Nifti1Header if 348 in sizes else nibabel.Nifti2Header if 540 in sizes else None
    if kind is None:
        raise VolumeError("header", "it is not NIfTI (no such header)", f"convert it, or {FETCH}")
    try:
        # Without nibabel's own check, which would turn a zero spacing into 1 and only log it.
        header = kind.from_fileobj(io.BytesIO(content), check=False)
        if header["magic"].item()[:3] not in (b"n+1", b"n+2"):
            raise VolumeError("header", "it is no single-file NIfTI (.hdr/.img pair?)", "convert it to .nii.gz")
        dtype, shape, offset = header.get_data_dtype(), header.get_data_shape(), int(header["vox_offset"])
        slope, intercept = header.get_slope_inter()
    except VolumeError:
        raise
    except Exception as error:  # nibabel and numpy raise many kinds for a damaged header
        short = len(content) < (348 if 348 in sizes else 540)
        code = "truncated" if short else "header"
        raise VolumeError(code, f"the header cannot be read ({error})", FETCH) from error
    if dtype.kind not in "iuf":
        raise VolumeError(
            "header",
            f"it has the data type {dtype}, not one number per voxel",
            "convert it to integers or floats",
        )
    if not shape or min(shape) < 1 or offset < kind.single_vox_offset:
        raise VolumeError("header", f"it has the shape {shape} and its data at byte {offset}", FETCH)
    return RawHeader(header, dtype, tuple(map(int, shape)), offset, slope, intercept)
