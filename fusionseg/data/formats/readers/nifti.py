"""The reader of NIfTI files: it reads a file to its last byte and reports damage.

nibabel's own loading stops after the last voxel that it needs, and repairs headers silently. A check has to see the
damage, so this module reads the bytes and lets nibabel interpret the header only.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.volumeutils import apply_read_scaling

from fusionseg.config.registry import readers
from fusionseg.data.formats.image_file import FETCH, FileGeometry, ImageFile, VolumeError
from fusionseg.data.formats.readers.affines import UNKNOWN_AFFINE
from fusionseg.data.formats.readers.byte_streams import read_all, read_start, refuse_wrong_length
from fusionseg.data.formats.readers.nifti_geometry import affine_of

Array = np.ndarray[Any, np.dtype[Any]]

HEADER_BYTES = 1 << 20  # the header, and extensions of a usual size
SUFFIXES = (".nii.gz", ".nii")


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
        return to_image_file(read_volume(path))

    def read_geometry(self, path: Path) -> FileGeometry:
        """Read the header of a file, and no voxel.

        Args:
            path: a file whose name ends in one of the suffixes.

        Raises:
            VolumeError: as `read_header`.
        """
        return to_geometry(read_header(path))


def read_header(path: Path) -> RawHeader:
    """Read the header of a NIfTI file, and no voxel.

    Args:
        path: a file whose name ends in .nii.gz or .nii.

    Raises:
        VolumeError: as `read_volume`, for damage that the header shows.
    """
    _check_name(path)
    return parse_header(path, read_start(path, HEADER_BYTES, gzip=is_gzip(path)))


def read_volume(path: Path) -> RawVolume:
    """Read a whole NIfTI file, and verify its checksum and length.

    The values are those that nibabel gives, scaled in float64.

    Args:
        path: a file whose name ends in .nii.gz or .nii.

    Raises:
        VolumeError: its code is missing, unreadable, truncated, corrupt, trailing-data or header.
    """
    _check_name(path)
    content = read_all(path, gzip=is_gzip(path))
    return scaled_volume(parse_header(path, content), content)


def scaled_volume(raw: RawHeader, content: bytes) -> RawVolume:
    """Make the volume of a header and of the bytes of its data file.

    Args:
        raw: the header.
        content: the data file, whole and decompressed; of a single file, the file itself.

    Raises:
        VolumeError: its code is truncated or trailing-data.
    """
    dtype, shape = raw.dtype, raw.shape
    count = int(np.prod(shape, dtype=np.int64))
    refuse_wrong_length(len(content) - (raw.offset + count * dtype.itemsize), shape, dtype.name)
    values: Array = np.frombuffer(content, dtype, count, raw.offset).reshape(shape, order="F")
    if not raw.scaled:
        return RawVolume(values, raw.header, dtype.name)
    with np.errstate(over="ignore", invalid="ignore"):  # the reader of a case reports values that are not finite
        values = apply_read_scaling(values, np.float64(raw.slope), np.float64(raw.intercept))
    return RawVolume(values, raw.header, f"{dtype.name} scaled")


def to_image_file(volume: RawVolume) -> ImageFile:
    """The content of a NIfTI file as readers return it."""
    shape = _without_trailing_ones(volume.values.shape)
    geometry = _geometry(volume.header, shape)
    voxels = volume.values.reshape(shape, order="F")
    return ImageFile(
        np.moveaxis(voxels, 3, 0) if len(shape) == 4 else voxels, geometry.affine, volume.dtype, geometry.problems
    )


def to_geometry(raw: RawHeader) -> FileGeometry:
    """The geometry of a NIfTI header as readers return it."""
    return _geometry(raw.header, _without_trailing_ones(raw.shape))


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


def is_gzip(path: Path) -> bool:
    """Test that the name of a file says that it is compressed by gzip.

    Args:
        path: the file.
    """
    return path.name.lower().endswith(".gz")


def parse_header(path: Path, content: bytes, *, pair: bool = False) -> RawHeader:
    """Interpret the header of a NIfTI file.

    Args:
        path: the file, for its name.
        content: its first bytes, decompressed.
        pair: True for the header file of a .hdr/.img pair.

    Raises:
        VolumeError: the header is damaged, or of another format.
    """
    if not content:
        raise VolumeError("truncated", "it is empty", FETCH)
    if not is_gzip(path) and content[:2] == b"\x1f\x8b":
        raise VolumeError("header", f"it is gzip-compressed but named {path.suffix}", f"rename it to {path.suffix}.gz")
    sizes = {int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big")}
    kind: Any = nibabel.Nifti1Header if 348 in sizes else nibabel.Nifti2Header if 540 in sizes else None
    if kind is None:
        raise VolumeError("header", "it is not NIfTI (no such header)", f"convert it, or {FETCH}")
    try:
        # Without nibabel's own check, which would turn a zero spacing into 1 and only log it.
        header = kind.from_fileobj(io.BytesIO(content), check=False)
        _check_magic(header["magic"].item()[:3], pair=pair)
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
    if not shape or min(shape) < 1 or offset < (0 if pair else kind.single_vox_offset):
        raise VolumeError("header", f"it has the shape {shape} and its data at byte {offset}", FETCH)
    return RawHeader(header, dtype, tuple(map(int, shape)), offset, slope, intercept)


def _check_magic(magic: bytes, *, pair: bool) -> None:
    if pair and magic not in (b"ni1", b"ni2"):
        single = magic in (b"n+1", b"n+2")
        raise VolumeError(
            "header",
            "it is a single-file NIfTI" if single else "it is Analyze 7.5, which does not state the orientation",
            "rename it to .nii" if single else "convert it to NIfTI, with the true orientation",
        )
    if not pair and magic not in (b"n+1", b"n+2"):
        raise VolumeError(
            "header", "it is the header of a .hdr/.img pair", "rename it to .hdr, beside its .img, or convert it"
        )
