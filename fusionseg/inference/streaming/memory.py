"""The host memory of a prediction: its estimate, and slabs for a volume that takes more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, inf, prod

from fusionseg.inference.streaming.chunks import CHUNK_VALUES
from fusionseg.inference.streaming.member_volume import MemberVolume
from fusionseg.inference.streaming.window_layout import Box, Shape

_FLOAT_BYTES = 4
_CHUNK_COPIES = 6
"""Arrays of the size of a chunk at the same time: along each interpolated axis two neighbours and the result."""


@dataclass(frozen=True)
class StreamMemory:
    """The memory of the streams of an ensemble in bytes, without the images and the result."""

    rows: int
    """The open rows of all members."""
    windows: int
    """The logits of the windows of one forward pass."""
    chunk: int
    """The logits at a chunk of the original grid."""

    @property
    def total(self) -> int:
        """All together."""
        return self.rows + self.windows + self.chunk


def stream_memory(members: Sequence[MemberVolume], axis: int, outputs: int) -> StreamMemory:
    """Estimate the memory of the logits of a volume.

    Args:
        members: the volumes of an ensemble.
        axis: the axis of the original grid along which the rows are in order.
        outputs: number of outputs of the networks.
    """
    shape = members[0].volume.original_shape
    rows = sum(_row_bytes(member, axis, outputs) for member in members)
    windows = max(prod(member.patch) * min(member.batch, member.layout(axis).count) for member in members)
    chunk = max(CHUNK_VALUES, outputs * min(shape)) * _CHUNK_COPIES
    return StreamMemory(rows, windows * outputs * _FLOAT_BYTES, chunk * _FLOAT_BYTES)


def _row_bytes(member: MemberVolume, axis: int, outputs: int) -> int:
    """The memory of the open rows of a member, with the rows that wait for one plane of the original grid."""
    layout = member.layout(axis)
    middle = [slice(0, size) for size in member.volume.original_shape]
    centre = member.volume.original_shape[axis] // 2
    middle[axis] = slice(centre, centre + 1)
    x, y, z = middle
    needed = member.grid.needed((x, y, z))
    waiting = 1 if needed is None else needed[layout.axis].stop - needed[layout.axis].start
    padded = layout.padded
    count = min(padded[layout.axis], layout.open_rows(member.batch) + waiting)
    return count * prod(padded) // padded[layout.axis] * (outputs + 1) * _FLOAT_BYTES


def slabs(shape: Shape, axis: int, needed: StreamMemory, budget_bytes: float) -> Iterator[Box]:
    """Divide a volume into as few slabs as the memory allows, along the longest axis across the rows.

    Args:
        shape: shape of the volume on the original grid.
        axis: the axis along which the rows are in order.
        needed: memory for the whole volume.
        budget_bytes: memory that may be used.
    """
    across = max((other for other in range(3) if other != axis), key=lambda other: shape[other])
    left = budget_bytes - needed.windows - needed.chunk
    share = needed.rows / left if left > 0 else inf
    count = 1 if needed.total <= budget_bytes else int(min(shape[across], ceil(min(share, shape[across]))))
    edges = [round(shape[across] * n / count) for n in range(count + 1)]
    for start, stop in pairwise(edges):
        x, y, z = (slice(start, stop) if other == across else slice(0, size) for other, size in enumerate(shape))
        yield x, y, z


def batch_of_windows(most: int, patch: Shape, outputs: int, budget_bytes: float) -> int:
    """The number of windows in one forward pass whose logits take at most a quarter of the memory.

    Args:
        most: `validate.window_batch`.
        patch: size of a window, in voxels.
        outputs: number of outputs of the network.
        budget_bytes: memory that may be used.
    """
    return max(1, min(most, int(budget_bytes / 4 / (outputs * prod(patch) * _FLOAT_BYTES))))
