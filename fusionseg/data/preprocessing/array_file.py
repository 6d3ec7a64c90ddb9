"""Reading of the .npy files of a store. Several threads may read.

`numpy.load` evaluates the header of a file as Python. That costs most of the time of a small file, and with several
threads Python 3.11 fails in it ("AST constructor recursion depth mismatch").
"""

from __future__ import annotations

import re
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"\x93NUMPY\x01\x00"
"""Version 1.0 of the format, which `numpy.save` writes for headers of less than 64 kB."""
_LENGTH = 2
_HEADER = re.compile(rb"\{'descr': '([<>|=]\w+)', 'fortran_order': False, 'shape': \(((?:\d+, ?)*\d*)\), \} *\n")
_READ_AT_ONCE = 1 << 20
"""Bytes that are read with the header: small files are whole then."""


def read_array(path: str | Path, *, mapped: bool) -> NDArray[Any]:
    """Read an array in C order, as `numpy.save` writes it.

    Args:
        path: of the file.
        mapped: map it into memory instead, read only.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such file, or is cut short.
    """
    with open(path, "rb", buffering=0) as stream:
        content = stream.read(1 << 12 if mapped else _READ_AT_ONCE) or b""
        dtype, shape, begin = _header(content)
        count: int = prod(shape)
        if mapped and count > 0:
            stream.seek(0, 2)
            _check_size(stream.tell(), begin, dtype, shape)
            return np.memmap(stream, dtype, "r", begin, shape)
        parts = [content]
        while part := stream.read():
            parts.append(part)
    content = b"".join(parts) if len(parts) > 1 else content
    _check_size(len(content), begin, dtype, shape)
    return np.frombuffer(content, dtype, prod(shape), begin).reshape(shape)


def _header(content: bytes) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """The data type and the shape of an array, and the position of its first byte in the file."""
    first = len(_MAGIC) + _LENGTH
    begin = first + int.from_bytes(content[len(_MAGIC) : first], "little")
    found = _HEADER.fullmatch(content[first:begin])
    if not content.startswith(_MAGIC) or found is None:
        raise ValueError("the header is not that of an array of numpy.save")
    return np.dtype(found[1].decode()), tuple(int(size) for size in found[2].split(b",") if size.strip()), begin


def _check_size(size: int, begin: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if size != (expected := begin + prod(shape) * dtype.itemsize):
        raise ValueError(f"expected {expected} bytes, got {size}")
