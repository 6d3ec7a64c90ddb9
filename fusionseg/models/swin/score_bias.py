"""Biases of the attention scores of all blocks: relative position bias and masks, by few operators for a forward pass.

The tables of all blocks whose windows have the same size are joined, and one gather makes the biases of them. Their
gradient is one scattered addition, in an order that does not change from run to run.

The rows of a bias are a multiple of eight elements long in memory. torch's attention kernel needs this, and would copy
other biases for every call.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fusionseg.models.swin.window_layout import WindowLayout

_JOINED_BYTES = 2**26  # most bytes of the biases of windows of several groups that share one call of the kernel
_ALIGNMENT = 8


class TableIndex(NamedTuple):
    """Rows of a bias table for windows of n tokens."""

    rows: Tensor
    """(n, n), row of the table for each pair of tokens."""
    padded: Tensor
    """(n * m), the same with rows of m elements, a multiple of eight; those after the n-th are any row."""


class BlockScores(NamedTuple):
    """Bias table and windows of a block."""

    table: nn.Parameter
    """Bias table (rows, heads)."""
    pairs: TableIndex
    layout: WindowLayout


def table_index(rows_nn: Tensor) -> TableIndex:
    """Complete the rows of a bias table for windows of n tokens."""
    padded = rows_nn.new_zeros(len(rows_nn), _aligned(len(rows_nn)))
    padded[:, : len(rows_nn)] = rows_nn
    return TableIndex(rows_nn.contiguous(), padded.flatten())


def score_biases(blocks: Sequence[BlockScores], batch: int, dtype: torch.dtype) -> list[Tensor]:
    """Return the biases of the scores of each block.

    Args:
        blocks: the blocks, in any order.
        batch: samples of a micro-batch, B.
        dtype: of the attention.

    Returns:
        for each block (N, heads, n, n): the biases of its calls of the kernel (`kernel_calls`), one after the other.
    """
    alike: dict[tuple[int, int], list[int]] = {}
    for position, block in enumerate(blocks):
        key = id(block.pairs.rows), len(block.table)
        alike.setdefault(key, []).append(position)
    biases: dict[int, Tensor] = {}
    for positions in alike.values():
        chosen = [blocks[position] for position in positions]
        masks = [_mask(block, batch, dtype) for block in chosen]
        made = _ScoreBiases.apply(chosen[0].pairs, masks, dtype, *(block.table for block in chosen))
        biases.update(zip(positions, made, strict=True))
    return [biases[position] for position in range(len(blocks))]


class KernelCall(NamedTuple):
    """Neighbouring groups of windows that share one call of the attention kernel."""

    windows: int
    """Windows of the groups."""
    biases: int
    """1 for one group, whose windows share a bias; else one for each window of each sample."""


def kernel_calls(layout: WindowLayout, heads: int, batch: int, itemsize: int) -> list[KernelCall]:
    """Divide the groups of windows into calls of the kernel.

    A call has one bias for all of its windows, or one for each. The last groups, the windows at the border, are small
    and many: as many of them as `_JOINED_BYTES` permit have a bias for each window and share a call.

    Args:
        layout: windows of the tokens.
        heads: attention heads.
        batch: samples of a micro-batch.
        itemsize: bytes of an element of the biases.
    """
    sizes = [stop - first for first, stop, _ in layout.groups]
    window_bytes = batch * heads * layout.length * _aligned(layout.length) * itemsize
    apart = len(sizes)
    while apart and sum(sizes[apart - 1 :]) * window_bytes <= _JOINED_BYTES:
        apart -= 1
    apart = len(sizes) if len(sizes) - apart < 2 else apart
    calls = [KernelCall(size, 1) for size in sizes[:apart]]
    joined = sum(sizes[apart:])
    return [*calls, KernelCall(joined, joined * batch)] if joined else calls


def _mask(block: BlockScores, batch: int, dtype: torch.dtype) -> Tensor | None:
    """Return the masks (N, 1, n, m) of a block; None if no window has one."""
    if all(mask is None for _, _, mask in block.layout.groups):
        return None
    return _masks(block.layout, block.table.shape[1], batch, dtype)


@cache
def _masks(layout: WindowLayout, heads: int, batch: int, dtype: torch.dtype) -> Tensor:
    calls = kernel_calls(layout, heads, batch, dtype.itemsize)
    apart = sum(call.biases == 1 for call in calls)
    rows = []
    for index, (first, stop, mask) in enumerate(layout.groups):
        padded = layout.index.new_zeros(1, 1, layout.length, _aligned(layout.length), dtype=dtype)
        if mask is not None:
            padded[..., : layout.length] = mask
        rows.append(padded if index < apart else padded.expand((stop - first) * batch, -1, -1, -1))
    return torch.cat(rows)


def _aligned(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


class _ScoreBiases(torch.autograd.Function):
    """The biases of blocks whose windows have the same size."""

    @staticmethod
    def forward(
        ctx: Any, index: TableIndex, masks: Sequence[Tensor | None], dtype: torch.dtype, *tables: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.index, ctx.tables = index, tables
        length = len(index.rows)
        joined = torch.cat([table.mT for table in tables]).to(dtype)
        gathered = joined.index_select(1, index.padded).view(1, len(joined), length, -1)
        parts = gathered.split([table.shape[1] for table in tables], dim=1)
        padded = [part if mask is None else part + mask for part, mask in zip(parts, masks, strict=True)]
        return tuple(values[..., :length] for values in padded)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tables, rows = ctx.tables, ctx.index.rows.flatten()
        sums = [(grad if len(grad) == 1 else grad.sum(0)).reshape(grad.shape[1], -1) for grad in grads]
        by_pair = torch.cat(sums).mT.to(tables[0].dtype, memory_format=torch.contiguous_format)
        joined = torch.ops.aten.embedding_dense_backward(by_pair, rows, len(tables[0]), -1, False)
        # One gather makes them contiguous. Gradients of other strides would be copied one by one.
        sizes = tuple(table.shape[1] for table in tables)
        flat = joined.flatten().index_select(0, _order(len(joined), sizes, joined.device))
        found = flat.split([table.numel() for table in tables])
        return None, None, None, *(grad.view(table.shape) for grad, table in zip(found, tables, strict=True))


@cache
def _order(rows: int, heads: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the places of the elements of each table in a joined one (rows, sum of heads), table by table."""
    places = torch.arange(rows * sum(heads), device=device).view(rows, -1)
    return torch.cat([part.reshape(-1) for part in places.split(heads, dim=1)])
