"""The index of a divided checkpoint: its files with their hashes, its tensors, and the entries that are no tensors."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from fusionseg.runs.divided.content import DividedContent, join
from fusionseg.runs.divided.part_file import DTYPES
from fusionseg.runs.json_files import JsonObject
from fusionseg.runs.paths import INDEX, is_part_name, part_name
from fusionseg.utils.files import write_all

VERSION = 1
_VERSION, _HASH = "fusionseg_divided", "sha256"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as an index describes it."""

    name: str
    shape: tuple[int, ...]
    code: str
    """The type, by its code in safetensors."""
    rows: int | None
    """Rows of the part of each rank but the last ones; None if the file of rank 0 has the whole tensor."""

    @property
    def bytes(self) -> int:
        return prod(self.shape) * DTYPES[self.code].itemsize

    def parts(self) -> dict[str, tuple[int, int]]:
        """First row and end of the part in each file."""
        if self.rows is None:
            return {part_name(0): (0, self.shape[0] if self.shape else 1)}
        starts = range(0, self.shape[0], self.rows)
        return {part_name(rank): (at, min(at + self.rows, self.shape[0])) for rank, at in enumerate(starts)}


@dataclass(frozen=True)
class Index:
    """An index that was read from its file."""

    files: dict[str, tuple[int, str]]
    """Bytes and SHA-256 of each file by name."""
    tensors: list[StoredTensor]
    entries: Any


def write_index(folder: Path, content: DividedContent, files: Mapping[str, JsonObject]) -> None:
    """Write an index, and force it to disk.

    Args:
        folder: of the checkpoint.
        content: what rank 0 saves.
        files: `bytes` and `sha256` of the file of each rank, by name.

    Raises:
        OSError: the system refused a write.
    """
    body = {_VERSION: VERSION, "files": dict(files), "tensors": content.tensors, "entries": content.entries}
    text = json.dumps({_HASH: _hash_of(body), **body})
    with (folder / INDEX).open("xb", buffering=0) as file:
        write_all(file, text.encode())
        os.fsync(file.fileno())


def read_index(folder: Path) -> Index:
    """Read an index, and verify its hash.

    Args:
        folder: of the checkpoint.

    Raises:
        OSError: there is none.
        ValueError: it is damaged, or of another version.
    """
    body = json.loads((folder / INDEX).read_bytes())
    if not isinstance(body, dict) or _VERSION not in body:
        raise ValueError(f"is no index of a checkpoint ({_VERSION} is missing)")
    if body[_VERSION] != VERSION:
        raise ValueError(f"is of version {body[_VERSION]}, and version {VERSION} is read here")
    if body.pop(_HASH, None) != _hash_of(body):
        raise ValueError("its hash is wrong")
    try:
        files = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in body["files"].items()}
        tensors = [
            StoredTensor(name, tuple(map(int, entry["shape"])), str(entry["dtype"]), entry.get("rows"))
            for name, entry in body["tensors"].items()
        ]
        entries = body["entries"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"lacks an entry ({error})") from None
    if foreign := [name for name in files if not is_part_name(name)]:
        raise ValueError(f"names a file {foreign[0][:100]!r}, which no checkpoint has")
    for tensor in tensors:
        _check(tensor, files)
    # A tensor is allocated before its parts are read.
    if sum(tensor.bytes for tensor in tensors) > sum(size for size, _ in files.values()):
        raise ValueError("its tensors are larger than its files")
    return Index(files, tensors, entries)


def entry_of(index: Index, name: str) -> Any:
    """An entry without tensors, such as the configuration; None if it is missing or damaged."""
    try:
        return join(index.entries[name], {})
    except (KeyError, TypeError, ValueError):
        return None


def _check(tensor: StoredTensor, files: Mapping[str, tuple[int, str]]) -> None:
    """Refuse a tensor that cannot be in the files.

    Raises:
        ValueError: so it is.
    """
    if tensor.code not in DTYPES or min(tensor.shape, default=0) < 0:
        raise ValueError(f"the tensor {tensor.name[:100]!r} has an unknown type or shape")
    if tensor.rows is not None and not (isinstance(tensor.rows, int) and tensor.rows > 0 and tensor.shape):
        raise ValueError(f"the tensor {tensor.name[:100]!r} has no rows")
    if tensor.rows is not None and -(-tensor.shape[0] // tensor.rows) > len(files):
        raise ValueError(f"the tensor {tensor.name[:100]!r} has more parts than there are files")
    if missing := tensor.parts().keys() - files.keys():
        raise ValueError(f"has no {min(missing)}")


def _hash_of(body: Mapping[str, Any]) -> str:
    """The hash of the JSON values. Python writes the values that it has read from its own text in the same way."""
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()
