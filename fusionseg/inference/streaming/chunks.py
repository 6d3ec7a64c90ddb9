"""Logits at the voxels of the original grid, chunk by chunk, from the streams of one network or an ensemble."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from fusionseg.inference.streaming.grid_map import GridMap, Sampled
from fusionseg.inference.streaming.row_buffer import RowBuffer
from fusionseg.inference.streaming.window_layout import Box, Shape

CHUNK_VALUES = 2_000_000
"""Largest number of values (voxels times outputs) that are interpolated at once, on the original grid and on that of
the prepared volume. A chunk has at least one line of voxels."""


@dataclass(frozen=True)
class MemberRows:
    """The rows of one network, and their way to the original grid."""

    rows: RowBuffer
    grid: GridMap
    axis: int
    """Of the rows."""
    offset: Shape
    """The voxel of the prepared volume at which the rows begin."""
    scale: float
    """Voxels of the prepared volume for one of the original grid."""

    def advance(self, part: Box) -> None:
        """Read the rows that a part of the original grid needs."""
        needed = self.grid.needed(part)
        if needed is not None:
            side, offset = needed[self.axis], self.offset[self.axis]
            self.rows.advance(slice(side.start - offset, side.stop - offset))

    def sample(self, chunk: Box) -> Sampled | None:
        """The logits at a chunk within the last part; None if all of it lies outside the prepared volume."""
        needed = self.grid.needed(chunk)
        if needed is None:
            return None
        x, y, z = (
            slice(side.start - offset, side.stop - offset) for side, offset in zip(needed, self.offset, strict=True)
        )
        return self.grid.sample(chunk, self.rows.take((x, y, z)), [side.start for side in needed])


def sampled_chunks(
    members: Sequence[MemberRows], slab: Box, axis: int, outputs: int
) -> Iterator[tuple[Box, list[Sampled | None]]]:
    """Interpolate the logits of all members at a slab of the original grid.

    Args:
        members: the rows of each member, which cover the slab.
        slab: a box of the original grid.
        axis: the axis of the original grid along which the rows are in order.
        outputs: number of outputs of the networks.

    Yields:
        A box of the original grid, and the logits of each member at it. The list is emptied before the next one.
    """
    voxels = _voxels_at_once(outputs, [member.scale for member in members])
    for part in _divided(slab, axis, voxels):
        for member in members:
            member.advance(part)
        for chunk in _divided(part, _across(slab, axis), voxels):
            sampled = [member.sample(chunk) for member in members]
            yield chunk, sampled
            sampled.clear()  # views of rows: the caller's variable would keep them while the next windows are computed


def largest_chunk(slab: Box, axis: int, outputs: int, scales: Sequence[float]) -> tuple[Box, Box]:
    """A part in the middle of a slab whose rows are read at once, and a chunk of it; see `sampled_chunks`.

    Args:
        slab, axis, outputs: those of `sampled_chunks`.
        scales: of the members, see `MemberRows`.
    """
    voxels = _voxels_at_once(outputs, scales)
    parts = list(_divided(slab, axis, voxels))
    part = parts[(len(parts) - 1) // 2]
    chunks = list(_divided(part, _across(slab, axis), voxels))
    return part, chunks[(len(chunks) - 1) // 2]


def _voxels_at_once(outputs: int, scales: Sequence[float]) -> int:
    """The number of voxels of the original grid that are interpolated at once."""
    return int(CHUNK_VALUES / outputs / max(1.0, *scales))


def _across(slab: Box, axis: int) -> int:
    """The longest other axis of a slab."""
    return max((other for other in range(3) if other != axis), key=lambda one: slab[one].stop - slab[one].start)


def _divided(box: Box, axis: int, voxels: int) -> Iterator[Box]:
    """Divide a box along an axis into parts of a number of voxels, at least one plane each."""
    side = box[axis]
    plane = prod(other.stop - other.start for number, other in enumerate(box) if number != axis)
    step = max(1, voxels // plane)
    for start in range(side.start, side.stop, step):
        x, y, z = (slice(start, min(start + step, side.stop)) if n == axis else other for n, other in enumerate(box))
        yield x, y, z


def summed_probabilities(sampled: Sequence[Sampled | None], chunk: Box, outputs: int, *, sigmoid: bool) -> Tensor:
    """Apply softmax or sigmoid to logits at a chunk, and sum over the members: (K, X, Y, Z), on the CPU.

    Args:
        sampled: the logits of each member at the chunk; voxels outside its prepared volume are background.
        chunk: a box of the original grid.
        outputs: number of outputs of the networks.
        sigmoid: each output is a decision of its own; otherwise the outputs are classes, the background first.
    """
    total: Tensor | None = None
    for one in sampled:
        probabilities = _probabilities(one, chunk, outputs, sigmoid=sigmoid)
        total = probabilities if total is None else total.add_(probabilities)
    assert total is not None
    return total


def _probabilities(one: Sampled | None, chunk: Box, outputs: int, *, sigmoid: bool) -> Tensor:
    """Probabilities (K, X, Y, Z) of one member at a chunk, on the CPU."""
    inside = None
    if one is not None:
        inside = (one.logits.sigmoid() if sigmoid else one.logits.softmax(dim=0)).cpu()
        if one.outside is not None:
            outside = one.outside.cpu()
            inside[:, outside] = 0
            if not sigmoid:
                inside[0, outside] = 1
        if one.box == chunk:
            return inside
    result = torch.zeros((outputs, *(side.stop - side.start for side in chunk)))
    if not sigmoid:
        result[0] = 1
    if one is not None and inside is not None:
        result[(slice(None), *_within(one.box, chunk))] = inside
    return result


def decisions(sampled: Sequence[Sampled | None], chunk: Box, outputs: int, *, sigmoid: bool) -> Tensor:
    """The most probable class at each voxel of a chunk, uint8 (X, Y, Z); or the mask of each output, bool (K, X, Y, Z).

    The arguments are those of `summed_probabilities`. The logits of a single network decide by themselves.
    """
    if len(sampled) > 1:
        total = summed_probabilities(sampled, chunk, outputs, sigmoid=sigmoid)
        return decisions_of(total, len(sampled), sigmoid=sigmoid)
    shape = [side.stop - side.start for side in chunk]
    (one,) = sampled
    if one is None:
        return torch.zeros([outputs, *shape], dtype=torch.bool) if sigmoid else torch.zeros(shape, dtype=torch.uint8)
    decided = one.logits > 0 if sigmoid else _most_probable(one.logits)
    if one.outside is not None:
        decided.masked_fill_(one.outside, 0)
    if one.box == chunk:
        return decided.cpu()
    result = torch.zeros([outputs, *shape] if sigmoid else shape, dtype=decided.dtype)
    result[(..., *_within(one.box, chunk))] = decided.cpu()
    return result


def decisions_of(total: Tensor, members: int, *, sigmoid: bool) -> Tensor:
    """The result of `decisions` from a sum of probabilities.

    Args:
        total: (K, X, Y, Z).
        members: the number of networks in the sum.
        sigmoid: each output is a decision of its own.
    """
    return total > 0.5 * members if sigmoid else _most_probable(total)


def _most_probable(values: Tensor) -> Tensor:
    """The class of the largest value, uint8. On a CPU, `max` takes half to a tenth of the time of `argmax`."""
    return values.max(dim=0).indices.to(torch.uint8)


def _within(box: Box, chunk: Box) -> Box:
    """A box inside a chunk, counted from the start of the chunk."""
    x, y, z = (slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, chunk, strict=True))
    return x, y, z
