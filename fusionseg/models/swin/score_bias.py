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

_JOINED_BYTES = 2**25  # the biases of all windows of a block, up to which one call of the kernel has all of its windows
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
        for each block (N, heads, n, n). N is 1 without masks. With masks it is the number of groups of windows or, if
        these are small (`is_joined`), windows * B: a bias for every window, the samples of a window together.
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


def is_joined(layout: WindowLayout, heads: int, batch: int, itemsize: int) -> bool:
    """Tell whether all windows have one call of the kernel, with a bias for every window."""
    values = layout.windows * batch * heads * layout.length * _aligned(layout.length)
    return len(layout.groups) == 1 or values * itemsize <= _JOINED_BYTES


def _mask(block: BlockScores, batch: int, dtype: torch.dtype) -> Tensor | None:
    """Return the masks (N, 1, n, m) of a block; None if no window has one."""
    layout, heads = block.layout, block.table.shape[1]
    if all(mask is None for _, _, mask in layout.groups):
        return None
    return _masks(layout, batch if is_joined(layout, heads, batch, dtype.itemsize) else None, dtype)


@cache
def _masks(layout: WindowLayout, batch: int | None, dtype: torch.dtype) -> Tensor:
    """Make the masks of the groups or, for a batch, those of all windows."""
    rows = []
    for first, stop, mask in layout.groups:
        padded = layout.index.new_zeros(1, 1, layout.length, _aligned(layout.length), dtype=dtype)
        if mask is not None:
            padded[..., : layout.length] = mask
        rows.append(padded if batch is None else padded.expand((stop - first) * batch, -1, -1, -1))
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
