"""Helpers of the hand-written autograd functions: dtypes under autocast, and chunks of rows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fusionseg.models.device_kind import autocast_kind, device_kind

_CHUNK_ELEMENTS = 2**20  # elements of a chunk of rows: 4 MB in float32, which fit into the CPU's cache


def matmul_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which a matrix product of `x` is computed: that of autocast if it is on, else that of `x`."""
    kind = autocast_kind(x)
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def autocast_disabled(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which operations on the device of `x` keep the dtypes of their arguments."""
    kind = autocast_kind(x)
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def sum_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype for sums over many elements of `x`: float32, or the dtype of `x` if that is wider."""
    return torch.promote_types(x.dtype, torch.float32)


def uses_chunks(x: Tensor) -> bool:
    """Tell whether `x` is processed a few rows at a time.

    This is so on a CPU, where an operation is cheap to start but memory is slow. It is not so under `torch.compile`,
    which fuses operations itself, or while tracing, where every chunk would be recorded.
    """
    return device_kind(x) == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def row_chunks(rows: Tensor) -> list[slice]:
    """Return slices that cover the rows of a matrix: chunks if `uses_chunks(rows)`, else one slice of all rows."""
    step = max(1, _CHUNK_ELEMENTS // rows.shape[1]) if uses_chunks(rows) else max(1, len(rows))
    return [slice(first, first + step) for first in range(0, len(rows), step)]


def row_blocks(rows_BVC: Tensor) -> list[tuple[slice, slice]]:
    """Return the samples and rows of blocks that cover (B, V, C): each is a chunk (`row_chunks`) of one sample."""
    return [(slice(b, b + 1), part) for b, rows in enumerate(rows_BVC) for part in row_chunks(rows)]


def add_matmul_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left.T @ right to `total`, in place.

    Args:
        total: (n, m), with the `sum_dtype` of the factors.
        left: (rows, n).
        right: (rows, m), of the dtype of `left`.
    """
    if left.dtype == total.dtype:
        total.addmm_(left.mT, right)
    else:
        total += left.mT @ right
