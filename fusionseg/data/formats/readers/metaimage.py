"""The reader of MetaImage files: .mha, and .mhd with its data file.

ITK's own reader accepts a damaged zlib stream with a line on the screen. A check has to see the damage, so this module
reads the bytes itself. The header is a list of lines "key = value"; its coordinates are LPS.
Format: https://itk.org/Wiki/ITK/MetaIO/Documentation
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionseg.config.registry import readers
from fusionseg.data.formats.geometry import LPS_TO_RAS
from fusionseg.data.formats.image_file import FETCH, FileGeometry, FileProblem, ImageFile, VolumeError
from fusionseg.data.formats.readers.affines import checked_geometry
from fusionseg.data.formats.readers.byte_streams import data_file, read_all, read_start, refuse_wrong_length

HEADER_BYTES = 1 << 20
_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_UNORIENTED = FileProblem(
    "warning",
    "orientation-unknown",
    "the header states no directions of the voxel axes; they are read as left, posterior, superior, as ITK does",
    "write the directions into the header, if the axes point elsewhere",
)


@dataclass(frozen=True)
class MetaHeader:
    """The header of a MetaImage file.

    Args:
        dtype: of the stored numbers.
        shape: as stored, the first axis varies fastest; channels that are interleaved come first.
        affine: 4x4, from voxel index to mm in RAS+.
        oriented: False if the header states no directions.
        compressed: True for a zlib stream.
        data: the data file; None if the voxels follow the header.
        offset: the byte at which the voxels begin; -1 counts from the end of the file.
        channels_last: True for four axes, of which the last one is the channel.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    oriented: bool
    compressed: bool
    data: Path | None
    offset: int
    channels_last: bool

    @property
    def geometry(self) -> FileGeometry:
        """Shape and affine as readers return them."""
        shape = (self.shape[3], *self.shape[:3]) if self.channels_last else self.shape
        shape = shape[1:] if len(shape) == 4 and shape[0] == 1 else shape
        return checked_geometry(shape, self.affine, () if self.oriented else (_UNORIENTED,))


@readers.register("metaimage")
class MetaImageReader:
    """The built-in reader of MetaImage, ITK's format."""

    suffixes = (".mha", ".mhd")

    def read(self, path: Path) -> ImageFile:
        """Read a file, and its data file, to the last byte.

        Args:
            path: the .mha or .mhd file.

        Raises:
            VolumeError: a file is missing or damaged, or stores the voxels in another way.
        """
        content = read_all(path, gzip=False)
        header = _header(path, content)
        if header.data is None:
            content = content[header.offset :]
        else:
            try:
                content = read_all(header.data, gzip=False)
            except VolumeError as error:
                raise VolumeError(error.code, f"{header.data.name} beside it: {error.message}", error.remedy) from error
            content = content if header.offset < 0 else content[header.offset :]
        if header.compressed:
            content = _inflate(content)
        count = int(np.prod(header.shape, dtype=np.int64))
        if header.offset < 0 and not header.compressed:
            content = content[max(0, len(content) - count * header.dtype.itemsize) :]
        refuse_wrong_length(len(content) - count * header.dtype.itemsize, header.shape, header.dtype.name)
        voxels = np.frombuffer(content, header.dtype).reshape(header.shape, order="F")
        geometry = header.geometry
        voxels = (np.moveaxis(voxels, 3, 0) if header.channels_last else voxels).reshape(geometry.shape, order="F")
        return ImageFile(voxels, geometry.affine, header.dtype.name, geometry.problems)

    def read_geometry(self, path: Path) -> FileGeometry:
        """Read the header of a file.

        Args:
            path: the .mha or .mhd file.

        Raises:
            VolumeError: as `read`, for faults of the header.
        """
        return _header(path, read_start(path, HEADER_BYTES, gzip=False)).geometry

    def files(self, path: Path) -> list[Path]:
        """The file, and its data file.

        Args:
            path: the .mha or .mhd file.
        """
        try:
            data = _header(path, read_start(path, HEADER_BYTES, gzip=False)).data
        except VolumeError:  # `read` reports it
            data = None
        return [path] if data is None else [path, data]


def _header(path: Path, content: bytes) -> MetaHeader:
    fields, end = _fields(content)
    try:
        return _interpret(path, fields, end)
    except VolumeError:
        raise
    except (KeyError, ValueError, IndexError) as error:
        raise VolumeError("header", f"the MetaImage header cannot be read ({error})", FETCH) from error


def _fields(content: bytes) -> tuple[dict[str, str], int]:
    """The lines of the header, and the byte after it."""
    fields: dict[str, str] = {}
    position = 0
    while (end := content.find(b"\n", position)) >= 0:
        key, separator, value = content[position:end].decode("latin-1").partition("=")
        if not separator and key.strip():
            break
        fields[key.strip().lower()] = value.strip()
        position = end + 1
        if key.strip().lower() == "elementdatafile":  # the standard puts it last
            return fields, position
    empty = not content
    raise VolumeError(
        "truncated" if empty else "header",
        "it is empty" if empty else "it is not MetaImage, or the header has no end (ElementDataFile)",
        FETCH,
    )


def _interpret(path: Path, fields: dict[str, str], end: int) -> MetaHeader:
    def first(*names: str) -> str | None:
        return next((fields[name] for name in names if name in fields), None)

    def is_true(name: str, default: str) -> bool:
        return fields.get(name, default).lower() in ("true", "1")

    shape = tuple(int(part) for part in fields["dimsize"].split())
    dims, channels = len(shape), int(fields.get("elementnumberofchannels", 1))
    kind = fields["elementtype"].upper()
    if kind not in _TYPES or not is_true("binarydata", "true") or min(shape, default=0) < 1 or channels < 1:
        raise VolumeError(
            "header",
            f"it has the type {kind} of shape {shape}, binary: {fields.get('binarydata', 'True')}",
            "convert it to binary integers or floats, one number per voxel",
        )
    big = is_true("binarydatabyteordermsb", "false") or is_true("elementbyteordermsb", "false")
    names = fields["elementdatafile"].split()
    if names[:1] == ["LIST"] or "%" in fields["elementdatafile"]:
        raise VolumeError("header", "its voxels are in several data files", "convert it to .mha or .nii.gz")
    is_local = [name.upper() for name in names] == ["LOCAL"]
    data = None if is_local else data_file(path, fields["elementdatafile"])
    directions = first("transformmatrix", "rotation", "orientation")
    affine, sizes = np.eye(4), [float(x) for x in (first("elementspacing", "elementsize") or "1 " * dims).split()]
    matrix = np.eye(dims) if directions is None else np.array(directions.split(), np.float64).reshape(dims, dims)
    if dims in (3, 4):
        affine[:3, :3] = matrix[:3, :3].T * sizes[:3]
        affine[:3, 3] = [float(x) for x in (first("offset", "position", "origin") or "0 " * dims).split()][:3]
    if first("elementspacing", "elementsize") is None:
        raise VolumeError("spacing", "the header states no ElementSpacing", "write the true spacing into the header")
    if channels > 1:
        shape = (channels, *shape)
    return MetaHeader(
        np.dtype(_TYPES[kind]).newbyteorder(">" if big else "<"),
        shape,
        LPS_TO_RAS @ affine,
        directions is not None,
        is_true("compresseddata", "false"),
        data,
        end if data is None else int(fields.get("headersize", 0)),
        dims == 4 and channels == 1,
    )


def _inflate(content: bytes) -> bytes:
    stream = zlib.decompressobj(47)  # zlib or gzip
    try:
        voxels = stream.decompress(content)
    except zlib.error as error:
        raise VolumeError("corrupt", f"the zlib stream is damaged ({error})", FETCH) from error
    if not stream.eof:
        raise VolumeError("truncated", "the zlib stream ends before its end mark", FETCH)
    if stream.unused_data:
        raise VolumeError("trailing-data", "it has other bytes after the end of its zlib stream", FETCH)
    return voxels
