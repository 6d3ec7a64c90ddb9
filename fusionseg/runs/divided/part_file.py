"""The file of a rank in a divided checkpoint: safetensors, without a second copy of the tensors in memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fusionseg.runs.json_files import JsonObject
from fusionseg.utils.files import write_all

_CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
DTYPES = {code: dtype for dtype, code in _CODES.items()}
"""Types by their code in the format."""
_CHUNK_BYTES = 1 << 24
_ALIGNMENT = 8


def code_of(dtype: torch.dtype) -> str:
    """The code of a type in the format.

    Raises:
        TypeError: the format has no such type.
    """
    if dtype not in _CODES:
        raise TypeError(f"checkpoint.sharded: a tensor of type {dtype} cannot be stored")
    return _CODES[dtype]


def write_part(path: Path, tensors: Mapping[str, Tensor]) -> JsonObject:
    """Write tensors to a file, and force it to disk.

    `safetensors.torch.save_file` copies all tensors first, and its errors lack the number of the system's error.

    Args:
        path: of the file, which must not exist.
        tensors: on the CPU, by name.

    Returns:
        `bytes` and `sha256` of the file.

    Raises:
        OSError: the system refused a write.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # keeps them aligned
    header, end = {}, 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": code_of(tensor.dtype), "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    digest, written = hashlib.sha256(), 0
    with path.open("xb", buffering=0) as file:
        header_bytes = memoryview(len(text).to_bytes(8, "little") + text)
        for view in (header_bytes, *(bytes_of(tensor) for _, tensor in ordered)):
            for start in range(0, len(view), _CHUNK_BYTES):
                chunk = view[start : start + _CHUNK_BYTES]
                digest.update(chunk)
                write_all(file, chunk)
            written += len(view)
        os.fsync(file.fileno())
    return {"bytes": written, "sha256": digest.hexdigest()}


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on the CPU, in its memory if it is contiguous."""
    flat: memoryview = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return flat


def digest_of(path: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
