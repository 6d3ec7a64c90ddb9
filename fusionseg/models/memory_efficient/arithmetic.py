"""Where and how the hand-written functions of the Swin networks compute."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

_NUMBERS_AT_ONCE = 2**20  # of a chunk of rows: 4 MB in 32 bits, so that a chain of operations stays in the cache


def working_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a matrix product of `x` has here: that of autocast, if it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if not x.is_meta and torch.is_autocast_enabled(kind) else x.dtype


def as_written(x: Tensor) -> AbstractContextManager[Any]:
    """Where operations on the device of `x` compute in the dtypes that they are given, autocast or not."""
    kind = x.device.type
    if x.is_meta or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def sum_dtype(x: Tensor) -> torch.dtype:
    """The dtype for sums over many numbers of `x`: at least 32 bits."""
    return torch.promote_types(x.dtype, torch.float32)


def in_chunks(x: Tensor) -> bool:
    """Whether to go through `x` a few rows at a time: on a CPU, where operations are cheap to start and memory is slow.

    Not under `torch.compile`, which fuses operations itself, nor in a trace, which would repeat every chunk.
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def row_chunks(rows: Tensor) -> list[slice]:
    """Slices that cover the rows of a matrix: chunks as `in_chunks` wants them, or all at once."""
    step = max(1, _NUMBERS_AT_ONCE // rows.shape[1]) if in_chunks(rows) else max(1, len(rows))
    return [slice(first, first + step) for first in range(0, len(rows), step)]


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds left.T @ right to a total that has `sum_dtype` of the factors."""
    if left.dtype == total.dtype:
        total.addmm_(left.mT, right)
    else:
        total += left.mT @ right
