"""NIfTI files read whole, with what is wrong with them named.

nibabel reads what it needs and repairs what it can; a check has to see the damage.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from fusionseg.data.case import IMAGE_SUFFIXES

Array = np.ndarray[Any, np.dtype[Any]]

CHUNK_BYTES = 1 << 20
FETCH = "fetch or export the file again"


class VolumeError(Exception):
    """A file that holds no usable volume."""

    def __init__(self, code: str, message: str, remedy: str) -> None:
        super().__init__(message)
        self.code, self.message, self.remedy = code, message, remedy


@dataclass
class RawVolume:
    """A NIfTI file's content, read whole. `affine` is None where the header gives no usable one."""

    values: Array
    header: Any
    affine: Array | None
    dtype: str
    digest: str


def read_volume(path: Path) -> RawVolume:
    """Read a NIfTI file whole, and verify checksum and length.

    nibabel.load stops after the last voxel it needs, before gzip's checksum, and repairs headers silently:
    hence the bytes are read here, and nibabel interprets the header only.

    Raises:
        VolumeError: its code is missing, unreadable, truncated, corrupt, trailing-data or header.
    """
    if not path.name.endswith(IMAGE_SUFFIXES):
        raise VolumeError("header", "is not named as NIfTI", f"convert it to {' or '.join(IMAGE_SUFFIXES)}")
    try:
        content = _gunzip(path) if path.name.endswith(".gz") else path.read_bytes()
    except FileNotFoundError:
        raise VolumeError("missing", "does not exist", "copy it there, or take the case out of the data set") from None
    except OSError as error:
        raise VolumeError(
            "unreadable", f"cannot be read: {error.strerror or error}", "check the permissions and the disk"
        ) from error
    if not content:
        raise VolumeError("truncated", "is empty", FETCH)
    if path.suffix == ".nii" and content[:2] == b"\x1f\x8b":
        raise VolumeError("header", "is gzip-compressed but named .nii", "rename it to .nii.gz")
    header, dtype, shape, offset = _header(content)
    count = int(np.prod(shape, dtype=np.int64))
    surplus = len(content) - (offset + count * dtype.itemsize)
    if surplus < 0:
        raise VolumeError(
            "truncated",
            f"holds {-surplus} bytes less than its header says ({'x'.join(map(str, shape))} {dtype.name})",
            FETCH,
        )
    if surplus > 0:
        raise VolumeError(
            "trailing-data",
            f"holds {surplus} bytes more than its header says ({'x'.join(map(str, shape))} {dtype.name})",
            FETCH,
        )
    values: Array = np.frombuffer(content, dtype, count, offset)
    digest = hashlib.blake2b(memoryview(content)[offset:], digest_size=16).hexdigest()
    values = values.reshape(shape, order="F")
    slope, inter = header.get_slope_inter()
    name = dtype.name
    if slope is not None and (slope, inter) != (1, 0):
        values = values * np.float32(slope) + np.float32(inter)
        name += " scaled"
    try:
        affine = np.asarray(header.get_best_affine(), np.float64)
    except Exception:  # nibabel raises several kinds for an impossible quaternion
        affine = None
    return RawVolume(values, header, affine, name, digest)


def corner_distance_mm(shape: tuple[int, ...], one: Array, other: Array) -> float:
    """Largest distance in mm between where two affines put the corners of a volume."""
    ends = [(0, n - 1) for n in (*shape, 1, 1)[:3]]
    corners = np.array(list(itertools.product(*ends)))
    offset = corners @ (one - other)[:3, :3].T + (one - other)[:3, 3]
    return float(np.linalg.norm(offset, axis=1).max())


def is_invertible(affine: Array) -> bool:
    """Whether an affine leads back from mm to voxels."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-6 * lengths.prod())


def _gunzip(path: Path) -> bytes:
    """Decompress all of a file; zlib verifies each member's checksum and length."""
    parts, stream, members = [], zlib.decompressobj(31), 1
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            while chunk:
                if stream.eof:
                    if not chunk.strip(b"\0"):  # padding from tapes and block devices is no damage
                        break
                    stream, members = zlib.decompressobj(31), members + 1
                try:
                    parts.append(stream.decompress(chunk))
                except zlib.error as error:
                    if members > 1 and not parts[-1]:
                        raise VolumeError(
                            "trailing-data", "has foreign bytes after the end of its gzip stream", FETCH
                        ) from error
                    if not parts and "header" in str(error):
                        raise VolumeError(
                            "corrupt",
                            "is named .gz but is not gzip-compressed",
                            f"rename it to .nii if it is plain NIfTI, or {FETCH}",
                        ) from error
                    raise VolumeError("corrupt", f"the gzip stream is damaged ({error})", FETCH) from error
                chunk = stream.unused_data
                if stream.eof:
                    parts.append(b"")  # marks that a member ended well
    if not parts:
        return b""
    if not stream.eof:
        raise VolumeError("truncated", "the gzip stream ends before its end mark", FETCH)
    return b"".join(parts)


def _header(content: bytes) -> tuple[Any, np.dtype[Any], tuple[int, ...], int]:
    sizes = {int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big")}
    kind: Any = nibabel.Nifti1Header if 348 in sizes else nibabel.Nifti2Header if 540 in sizes else None
    if kind is None:
        raise VolumeError("header", "is not NIfTI (no such header)", f"convert it, or {FETCH}")
    try:
        # Without nibabel's own check, which would turn a zero spacing into 1 and only log it.
        header = kind.from_fileobj(io.BytesIO(content), check=False)
        if header["magic"].item()[:3] not in (b"n+1", b"n+2"):
            raise VolumeError("header", "is no single-file NIfTI (.hdr/.img pair?)", "convert it to .nii.gz")
        dtype, shape, offset = header.get_data_dtype(), header.get_data_shape(), int(header["vox_offset"])
    except VolumeError:
        raise
    except Exception as error:  # nibabel and numpy raise many kinds for a damaged header
        short = len(content) < (348 if 348 in sizes else 540)
        code = "truncated" if short else "header"
        raise VolumeError(code, f"the header cannot be read ({error})", FETCH) from error
    if dtype.kind not in "iuf":
        raise VolumeError(
            "header",
            f"has the data type {dtype}, not one number per voxel",
            "convert it to integers or floats",
        )
    if not shape or min(shape) < 1 or offset < kind.single_vox_offset:
        raise VolumeError("header", f"has the shape {shape} and its data at byte {offset}", FETCH)
    return header, dtype, tuple(map(int, shape)), offset
