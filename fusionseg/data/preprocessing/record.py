"""The record of a prepared case: its source files, its geometry, and the checksums of its arrays."""

from __future__ import annotations

import errno
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.formats.readers import Readers
from fusionseg.data.formats.readers.byte_streams import SPECIAL, is_special
from fusionseg.data.formats.source_files import files_of
from fusionseg.utils.files import write_json

FILE = "case.json"
_OPTIONAL = ("mapping", "annotated_voxels", "annotated_classes", "missing_channels", "channel_names")
"""Fields that a record has only where they are set."""
_NOT_STORED = ("folder", "annotated_classes")


@dataclass(frozen=True)
class SourceFile:
    """A source of a prepared case, recorded so that a change of its files is noticed.

    Args:
        path: that the case names: a file, the header file of several files, or the folder of a DICOM series.
        size: in bytes, of all its files.
        mtime_ns: time stamp of the file; of several files, a hash of their names, sizes and time stamps.
        sha256: hash of the content; of several files, of their sorted hashes, so that their names do not count.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str

    @staticmethod
    def read(path: Path, readers: Readers | None = None) -> SourceFile:
        """Read the size, the time stamp and the hash of a source.

        Args:
            path: that the case names.
            readers: of the data set; None for the built-in ones.
        """
        files = files_of(path, readers)
        digests = [_sha256(file) for file in files]
        several = files != [path]
        content = hashlib.sha256("".join(sorted(digests)).encode()).hexdigest() if several else digests[0]
        return SourceFile(str(path), *size_and_time(path, readers), content)

    def unchanged(self, path: Path, readers: Readers | None = None, state: tuple[int, int] | None = None) -> bool:
        """Test that a source has the recorded content. With the recorded size and time stamp, it is not read.

        Args:
            path: that the case names now.
            readers: of the data set; None for the built-in ones.
            state: its `size_and_time` where it is known; None to ask the file system.
        """
        try:
            size, mtime_ns = size_and_time(path, readers) if state is None else state
        except FileNotFoundError:
            return False
        if size != self.size:
            return False
        return mtime_ns == self.mtime_ns or SourceFile.read(path, readers).sha256 == self.sha256


def size_and_time(path: Path, readers: Readers | None = None) -> tuple[int, int]:
    """The size and the time stamp of a source, see `SourceFile`.

    Args:
        path: that the case names.
        readers: of the data set; None for the built-in ones.
    """
    files = files_of(path, readers)
    if files == [path]:
        status = path.stat()
        return status.st_size, status.st_mtime_ns
    stamps = [(file.name, status.st_size, status.st_mtime_ns) for file in files for status in (file.stat(),)]
    digest = hashlib.blake2b(repr(sorted(stamps)).encode("utf-8", "surrogatepass"), digest_size=7).digest()
    return sum(size for _, size, _ in stamps), int.from_bytes(digest, "big")


def _sha256(file: Path) -> str:
    if is_special(file):
        raise OSError(errno.EINVAL, SPECIAL[1], str(file))
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class PreparedCase:
    """The properties of a prepared case, without its arrays.

    Shapes are (X, Y, Z). Affines are 4x4, from voxel index to mm in RAS+, of the prepared array and of the file.
    `spacing` is the prepared voxel size in mm.
    """

    name: str
    sources: tuple[SourceFile, ...]
    shape: tuple[int, int, int]
    channels: int
    affine: tuple[tuple[float, ...], ...]
    spacing: tuple[float, float, float]
    original_shape: tuple[int, int, int]
    original_affine: tuple[tuple[float, ...], ...]
    background: tuple[float, ...]
    """For each channel, the value outside the volume, see `Volume.background`."""
    classes: tuple[int, ...]
    """Indices of the foreground classes that occur, in ascending order."""
    class_offsets: tuple[int, ...]
    """First entry of each of `classes` in foreground.npy, and the number of entries."""
    labelled: bool
    class_voxels: tuple[tuple[int, int, int, int], ...]
    """For each foreground class of the label file: index, voxels in the file, after resampling, and after the crop."""
    digest: str
    """Digest of the image's voxels, see `image_digest`."""
    label_digest: str
    """Digest of the label's voxels; empty without a label."""
    checksums: tuple[int, int, int]
    """`checksum` of image.npy, of label.npy (0 without a label) and of foreground.npy."""
    folder: str
    """Path within the store; see `case_folders`."""
    mapping: Mapping[str, Any] | None = None
    """`LabelScheme.mapping` that the label was read with."""
    annotated_voxels: int | None = None
    """Number of entries in foreground.npy after those of the classes: positions of voxels that are annotated, the
    background included. None if every voxel is."""
    annotated_classes: tuple[int, ...] | None = None
    """Indices of the classes that belong to an annotated output; None for all. It is that of the data set now, and is
    not in the file."""
    missing_channels: tuple[int, ...] | None = None
    """Positions of the channels that the case lacks. They are 0 in every voxel. None if it has all."""
    channel_names: tuple[str, ...] | None = None
    """Names of the channels, if the settings of the preparation name channels; see `DataConfig.names_channels`."""

    @property
    def centre_classes(self) -> tuple[int, ...]:
        """Indices of the classes that occur and are annotated: those that patches are centred on."""
        annotated = self.annotated_classes
        return self.classes if annotated is None else tuple(k for k in self.classes if k in annotated)

    @property
    def content(self) -> str:
        """A hash of the source files' content and of what else the arrays depend on beside the settings: the map of
        label values, the missing channels, the names of the channels."""
        content = "".join(source.sha256 for source in self.sources)
        if self.mapping is not None:
            content += json.dumps(self.mapping, sort_keys=True)
        if self.missing_channels:
            content += f"without {self.missing_channels}"
        if self.channel_names is not None:
            content += json.dumps(self.channel_names)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> PreparedCase:
        """Make a record from plain values."""
        values = {**dict.fromkeys(_OPTIONAL), **{key: _tuples(value) for key, value in raw.items()}}
        values["sources"] = tuple(SourceFile(**source) for source in raw["sources"])
        return PreparedCase(**{name: values[name] for name in _FIELDS})


_FIELDS = tuple(field.name for field in fields(PreparedCase))


def _tuples(value: Any) -> Any:
    """The value with tuples in place of lists. The items of a list are of one kind, so the first tells of all: a start
    with many cases reads very many lists of numbers."""
    if not isinstance(value, list):
        return value
    return tuple(map(_tuples, value)) if value and isinstance(value[0], list) else tuple(value)


def checksum(array: NDArray[Any]) -> int:
    """CRC-32 of the data type and the values of an array, in C order.

    Args:
        array: of any shape.
    """
    values = np.ascontiguousarray(array)
    return zlib.crc32(values.reshape(-1).view(np.uint8).data, zlib.crc32(values.dtype.str.encode()))


def read_record(root: Path, folder: str) -> PreparedCase | None:
    """Read the record in a folder of a store.

    Args:
        root: the folder of the store.
        folder: path of the case within it.

    Returns:
        None if it is missing or has another format.
    """
    try:
        raw = json.loads((root / folder / FILE).read_text(encoding="utf-8"))
        return PreparedCase.from_json({**raw, "folder": folder})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_record(root: Path, record: PreparedCase) -> None:
    """Write case.json of a prepared case.

    Args:
        root: the folder of the store.
        record: of the case.
    """
    write_json(root / record.folder / FILE, to_json(record))


def to_json(record: PreparedCase) -> dict[str, Any]:
    """The record as plain values, without the folder, which is the file's own, and without what is not set."""
    return {
        key: value
        for key, value in asdict(record).items()
        if key not in _NOT_STORED and not (key in _OPTIONAL and value is None)
    }
