"""Probabilities of outputs on the original grid of an image, from logits on the prepared grid, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fusionseg.data.preprocessing.volume import Volume

Box = tuple[slice, slice, slice]
Shape = tuple[int, int, int]

CHUNK_VALUES = 8_000_000
"""Largest number of probabilities (voxels times classes) that are computed at once, except that a chunk has at least
one row of voxels."""


@dataclass(frozen=True)
class BoxLogits:
    """Logits over a box of a prepared volume."""

    logits: Tensor
    """(C, X, Y, Z)."""
    mapping: NDArray[np.float64]
    """4x4, from a voxel of the original grid to a voxel of `logits`."""
    prepared_shape: tuple[int, ...]
    """Shape of the whole prepared volume, (X, Y, Z)."""
    offset: NDArray[np.int64]
    """The voxel of the prepared volume at which `logits` start."""


def whole(shape: Shape) -> Box:
    """The box of a whole volume."""
    return slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])


def slabs(shape: Shape, needed_bytes: float, budget_bytes: float) -> Iterator[Box]:
    """Divide a volume into as few slabs along its longest axis as the memory allows.

    Args:
        shape: shape of the volume on the original grid.
        needed_bytes: memory for the whole volume at once.
        budget_bytes: memory that may be used.
    """
    axis = int(np.argmax(shape))
    count = min(shape[axis], max(1, ceil(needed_bytes / budget_bytes)))
    edges = [round(shape[axis] * n / count) for n in range(count + 1)]
    for start, stop in pairwise(edges):
        box = list(whole(shape))
        box[axis] = slice(start, stop)
        yield box[0], box[1], box[2]


def original_to_prepared(volume: Volume) -> NDArray[np.float64]:
    """The 4x4 mapping from a voxel of the original grid to a voxel of the prepared volume."""
    mapping: NDArray[np.float64] = np.linalg.inv(volume.affine) @ volume.original_affine
    return mapping


def prepared_box(volume: Volume, slab: Box, patch: Sequence[int], overlap: float) -> Box:
    """The part of a prepared volume that is needed to predict a slab of the original grid.

    Args:
        volume: the prepared volume.
        slab: a box of the original grid.
        patch: size of the sliding windows, in voxels.
        overlap: overlap of neighbouring windows.

    Returns:
        A box of the prepared volume. Sliding windows over this box have the same positions as those of the whole
        volume; see `window_span`.
    """
    mapping = original_to_prepared(volume)
    shape = np.array(volume.image.shape[1:])
    corners = np.array(list(product(*((side.start, side.stop - 1) for side in slab))))
    points = corners @ mapping[:3, :3].T + mapping[:3, 3]
    first = np.clip(np.floor(points.min(axis=0)).astype(int), 0, shape - 1)
    last = np.clip(np.ceil(points.max(axis=0)).astype(int), first, shape - 1)
    x, y, z = (
        slice(*window_span(int(size), edge, overlap, int(low), int(high)))
        for size, edge, low, high in zip(shape, patch, first, last, strict=True)
    )
    return x, y, z


def window_span(size: int, patch: int, overlap: float, first: int, last: int) -> tuple[int, int]:
    """The span, along one axis, of the sliding windows that cover some voxels.

    Sliding windows over this span alone have the same positions as those of the whole axis. The prediction of a slab is
    therefore equal to that part of the prediction of the whole volume. With test-time flips, windows also start at the
    other end of the axis. The two predictions are then close, but not equal.

    Args:
        size: voxels along the axis.
        patch: size of a window, in voxels.
        overlap: overlap of neighbouring windows.
        first, last: the first and the last voxel to cover.

    Returns:
        The first voxel of the span, and the voxel after its last one.
    """
    if size <= patch:
        return 0, size
    interval = max(1, int(patch * (1 - overlap)))  # as in MONAI; the last window ends with the axis
    starts = [min(start, size - patch) for start in range(0, size - patch + interval, interval)]
    covering = [start for start in starts if start <= last and start + patch > first]
    return covering[0], covering[-1] + patch


def summed_probabilities(parts: Sequence[BoxLogits], slab: Box, *, sigmoid: bool) -> Iterator[tuple[Box, Tensor]]:
    """Interpolate logits at the voxels of a slab, apply softmax or sigmoid, and sum over the members, chunk by chunk.

    Args:
        parts: logits of each ensemble member, whose boxes cover the slab.
        slab: a box of the original grid.
        sigmoid: each channel is a decision of its own; otherwise the channels are classes, the background first.

    Yields:
        A box of the original grid, and the sum of the probabilities in it, (C, X, Y, Z).
    """
    x, y, z = slab
    channels = len(parts[0].logits)
    rows = max(1, CHUNK_VALUES // (channels * (y.stop - y.start) * (z.stop - z.start)))
    for start in range(x.start, x.stop, rows):
        chunk = slice(start, min(start + rows, x.stop)), y, z
        total: Tensor | None = None
        for part in parts:
            probabilities = _probabilities(part, chunk, sigmoid=sigmoid)
            total = probabilities if total is None else total.add_(probabilities)
        assert total is not None
        yield chunk, total


def _probabilities(part: BoxLogits, chunk: Box, *, sigmoid: bool) -> Tensor:
    """Probabilities (C, X, Y, Z) at the original voxels of `chunk`; background outside the prepared volume."""
    axes = [torch.arange(side.start, side.stop, dtype=torch.float64) for side in chunk]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    mapping = torch.from_numpy(part.mapping)
    points = points @ mapping[:3, :3].T + mapping[:3, 3]
    size = torch.tensor(part.logits.shape[1:], dtype=torch.float64)
    grid = ((2 * points + 1) / size - 1).flip(-1).float()
    logits = F.grid_sample(
        part.logits[None].float(), grid[None], mode="bilinear", padding_mode="border", align_corners=False
    )[0]
    probabilities = logits.sigmoid() if sigmoid else logits.softmax(dim=0)
    # Resampling rounds the shape, so an original voxel can lie just outside the prepared grid. It takes the values at
    # the border. Voxels further outside were removed by the foreground crop, and are background.
    place = points + torch.from_numpy(part.offset.astype(np.float64))
    limit = torch.tensor(part.prepared_shape, dtype=torch.float64)
    outside = ((place < -1) | (place > limit)).any(dim=-1)
    probabilities[:, outside] = 0
    if not sigmoid:
        probabilities[0, outside] = 1
    return probabilities
