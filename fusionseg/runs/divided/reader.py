"""The reader of divided checkpoints. It joins the parts: the content is that of a checkpoint in one file."""

from __future__ import annotations

import errno
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusionseg.runs.divided.content import join
from fusionseg.runs.divided.index import Index, StoredTensor, entry_of, read_index
from fusionseg.runs.divided.part_file import DTYPES, digest_of
from fusionseg.runs.paths import INDEX
from fusionseg.utils.errors import UserError


def read_divided(path: Path) -> Any:
    """Load a divided checkpoint on the CPU, and verify the hash of each file before its content is used.

    Args:
        path: of its folder, or a link to it.

    Raises:
        UserError: a file is missing or damaged.
    """
    folder = path.resolve()  # a run that trains on gives the link to another folder
    reading = INDEX
    try:
        index = read_index(folder)
        for reading, (size, digest) in index.files.items():
            if (folder / reading).stat().st_size != size:
                raise ValueError(f"has {(folder / reading).stat().st_size} bytes, not {size}")
            if digest_of(folder / reading) != digest:
                raise ValueError("its hash is wrong")
        tensors: dict[str, Tensor] = {}
        parts: defaultdict[str, list[tuple[StoredTensor, int, int]]] = defaultdict(list)
        for tensor in index.tensors:
            for name, (first, end) in tensor.parts().items():
                parts[name].append((tensor, first, end))
        for reading in sorted(parts):
            _read_parts(folder / reading, parts[reading], tensors)
        reading = INDEX
        return join(index.entries, _complete(index, tensors))
    except Exception as error:  # safetensors has exceptions of its own
        reason = "is missing" if getattr(error, "errno", None) == errno.ENOENT else str(error).partition("\n")[0]
        raise UserError(f"{path}: damaged checkpoint ({reading}: {reason})") from None


def read_divided_config(path: Path) -> dict[str, Any] | None:
    """The plain configuration in a divided checkpoint; None if it cannot be read. No other file is verified."""
    try:
        config = entry_of(read_index(path), "config")
    except Exception:  # `read_divided` says what is wrong
        return None
    return config if isinstance(config, dict) else None


def _read_parts(file: Path, wanted: list[tuple[StoredTensor, int, int]], tensors: dict[str, Tensor]) -> None:
    """Copy the parts in a file into the whole tensors.

    Raises:
        ValueError: a part has another shape or type than the index says.
        SafetensorError: it is missing.
    """
    from safetensors import safe_open

    with safe_open(file, framework="pt", device="cpu") as opened:
        for tensor, first, end in wanted:
            part = opened.get_tensor(tensor.name)
            shape = tensor.shape if tensor.rows is None else (end - first, *tensor.shape[1:])
            if tuple(part.shape) != shape or part.dtype != DTYPES[tensor.code]:
                raise ValueError(f"{tensor.name} has another shape or type than {INDEX} says")
            if tensor.name not in tensors:
                tensors[tensor.name] = torch.empty(tensor.shape, dtype=part.dtype)
            # A copy: the part is mapped from the file, which a run that trains on deletes.
            whole = tensors[tensor.name]
            (whole if tensor.rows is None else whole[first:end]).copy_(part)


def _complete(index: Index, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with those that have no values and so no parts."""
    for tensor in index.tensors:
        if tensor.name not in tensors:
            tensors[tensor.name] = torch.empty(tensor.shape, dtype=DTYPES[tensor.code])
    return tensors
