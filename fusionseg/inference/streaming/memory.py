"""The host memory of a prediction: its estimate, and slabs for a volume that takes more."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, prod

from fusionseg.inference.streaming.chunks import largest_chunk
from fusionseg.inference.streaming.grid_map import SAME_VOXELS
from fusionseg.inference.streaming.member_volume import MemberVolume
from fusionseg.inference.streaming.window_layout import Box, Shape, whole_box

log = logging.getLogger("fusionseg")

_FLOAT_BYTES = 4
_CHUNK_COPIES = 7
"""Arrays of the size of a chunk at the same time: its rows in one piece, and along each interpolated axis two
neighbours and the result."""
_MOST_SLABS = 64
"""Largest number of slabs that is tried."""


@dataclass(frozen=True)
class StreamMemory:
    """The memory of the streams of an ensemble in bytes, without the images and the result."""

    rows: int
    """The open rows of all members, and those that wait for their way to the original grid."""
    windows: int
    """The logits of the windows of one forward pass."""
    chunk: int
    """The logits at a chunk of the original grid."""

    @property
    def total(self) -> int:
        """All together."""
        return self.rows + self.windows + self.chunk


def stream_memory(
    members: Sequence[MemberVolume], axis: int, outputs: int, slab: Box | None = None, *, elsewhere: bool = False
) -> StreamMemory:
    """Estimate the memory of the logits of a volume.

    Args:
        members: the volumes of an ensemble.
        axis: the axis of the original grid along which the rows are in order.
        outputs: number of outputs of the networks.
        slab: a box of the original grid; None means all of it.
        elsewhere: the networks are on another device than the rows, which receives one window at a time.
    """
    whole = whole_box(members[0].volume.original_shape)
    part, chunk = largest_chunk(slab or whole, axis, outputs, [member.scale for member in members])
    rows = sum(_rows(member, axis, slab, part) for member in members)
    windows = max(prod(member.patch) * (1 if elsewhere else _windows(member, axis, slab)) for member in members)
    values = outputs * max(_voxels(chunk), *(_voxels(member.grid.needed(chunk)) for member in members))
    positions = max(member.grid.position_bytes for member in members) * _voxels(chunk)
    return StreamMemory(
        rows * (outputs + 1) * _FLOAT_BYTES,
        windows * outputs * _FLOAT_BYTES,
        values * _CHUNK_COPIES * _FLOAT_BYTES + positions,
    )


def _rows(member: MemberVolume, axis: int, slab: Box | None, part: Box) -> int:
    """The voxels of the open rows of a member, and of the rows that wait for a part of the original grid.

    The waiting rows count twice: the rows that the next part needs too are copied, so that their block can be freed.
    """
    layout = member.layout(axis, member.box_of_windows(slab))
    needed = member.grid.needed(part)
    waiting = 1 if needed is None else needed[layout.axis].stop - needed[layout.axis].start
    rows = min(layout.padded[layout.axis], layout.open_rows(member.batch) + waiting) + waiting
    return rows * prod(layout.padded) // layout.padded[layout.axis]


def _windows(member: MemberVolume, axis: int, slab: Box | None) -> int:
    """The windows of one forward pass, as often as their logits are in memory."""
    return min(member.batch, member.layout(axis, member.box_of_windows(slab)).count) * member.copies


def _voxels(box: Box | None) -> int:
    return 0 if box is None else prod(side.stop - side.start for side in box)


def slabs(
    members: Sequence[MemberVolume], axis: int, outputs: int, budget_bytes: float, *, elsewhere: bool = False
) -> list[Box]:
    """Divide a volume into as few slabs as the memory allows, along an axis across the rows.

    A slab takes the memory of all windows that cover it, and windows at the border of two slabs are computed for both.
    The borders are therefore those of windows. If no division takes little enough memory, the one that takes the least
    is chosen, and a warning is logged.

    Args:
        members, axis, outputs, elsewhere: those of `stream_memory`.
        budget_bytes: memory that may be used.
    """
    chosen = [whole_box(members[0].volume.original_shape)]
    least = stream_memory(members, axis, outputs, elsewhere=elsewhere).total
    if least <= budget_bytes:
        return chosen
    for division in _divisions(members[0], axis):
        needed = max(stream_memory(members, axis, outputs, slab, elsewhere=elsewhere).total for slab in division)
        if needed < least:
            chosen, least = division, needed
        if least <= budget_bytes:
            break
    if len(chosen) > 1:
        windows = sum(members[0].layout(axis, members[0].box_of_windows(slab)).count for slab in chosen)
        log.info(
            "the logits are computed in %d slabs, because of the memory: %.1f times as many windows",
            len(chosen),
            windows / members[0].layout(axis).count,
        )
    if least > budget_bytes:
        log.warning(
            "memory: the logits of this volume take about %.3g GB, of which %.3g GB are allowed (--memory, or half of"
            " the free memory), and smaller slabs would not take less; the prediction may run out of memory",
            least / 1e9,
            budget_bytes / 1e9,
        )
    return chosen


def _divisions(member: MemberVolume, axis: int) -> list[list[Box]]:
    """Divisions of a volume into two slabs, three, and so on, along the axis with the most borders of windows."""
    shape = member.volume.original_shape
    borders = {other: _borders(member, other) for other in range(3) if other != axis}
    across = max(borders, key=lambda other: (len(borders[other]), shape[other]))
    edges = [0, *borders[across], shape[across]]
    whole, divisions = whole_box(member.volume.original_shape), []
    for count in range(2, min(len(edges) - 1, _MOST_SLABS) + 1):
        some = [edges[round(n * (len(edges) - 1) / count)] for n in range(count + 1)]
        divisions.append([_replaced(whole, across, slice(start, stop)) for start, stop in pairwise(some)])
    return divisions


def _replaced(box: Sequence[slice], axis: int, side: slice) -> Box:
    x, y, z = (side if number == axis else other for number, other in enumerate(box))
    return x, y, z


def _borders(member: MemberVolume, axis: int) -> list[int]:
    """The voxels of the original grid at which windows start or end along an axis, without the ends of the volume."""
    layout = member.layout(axis)
    step, offset = member.mapping[layout.axis, axis], member.mapping[layout.axis, 3]
    places = [(edge - offset) / step for segment in layout.segments for edge in segment]
    voxels = {ceil(place - SAME_VOXELS) if step > 0 else floor(place + SAME_VOXELS) + 1 for place in places}
    return sorted(voxel for voxel in voxels if 0 < voxel < member.volume.original_shape[axis])


def batch_of_windows(most: int, patch: Shape, outputs: int, copies: int, budget_bytes: float) -> int:
    """The number of windows in one forward pass whose logits take at most a quarter of the memory.

    Args:
        most: `validate.window_batch`.
        patch: size of a window, in voxels.
        outputs: number of outputs of the network.
        copies: arrays of the size of the logits at the same time.
        budget_bytes: memory that may be used.
    """
    return max(1, min(most, int(budget_bytes / 4 / (outputs * prod(patch) * copies * _FLOAT_BYTES))))
