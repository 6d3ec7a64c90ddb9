"""The way from the grid of a prepared volume to that of its file: an index, three 1D interpolations, or positions.

Logits are interpolated linearly, with the values of the border beyond it. An axis that is only turned, cropped or
exchanged is an index. Axes that stay parallel are interpolated one by one. Only a grid whose axes are not parallel to
those of the prepared volume has a position for each voxel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fusionseg.inference.streaming.window_layout import Box

SAME_VOXELS = 1e-4
"""Distance in voxels that does not count: positions this near to a voxel are that voxel."""


@dataclass(frozen=True)
class Sampled:
    """Logits at voxels of the original grid."""

    box: Box
    """The voxels of the original grid. Those of the chunk that are not in it lie outside the prepared volume."""
    logits: Tensor
    """(K, X, Y, Z)."""
    outside: Tensor | None = None
    """(X, Y, Z), True for further voxels outside the prepared volume; None if there are none."""


class GridMap(ABC):
    """The way from the grid of a prepared volume to the original grid.

    Resampling rounds the shape, so an original voxel can lie just outside the prepared grid. It takes the values at the
    border. Voxels that are a voxel or more outside were removed by the foreground crop, and are background.
    """

    position_bytes = 0
    """Memory of the positions of a voxel, beside its logits."""

    @abstractmethod
    def needed(self, chunk: Box) -> Box | None:
        """The part of the prepared volume that is needed at a chunk of the original grid; None if all of it is outside.

        Args:
            chunk: a box of the original grid.
        """

    @abstractmethod
    def sample(self, chunk: Box, logits: Tensor, start: Sequence[int]) -> Sampled:
        """Interpolate at a chunk of the original grid that is not outside.

        Args:
            chunk: a box of the original grid.
            logits: (K, X, Y, Z), the needed part of the prepared volume.
            start: the voxel of the prepared volume at which `logits` start.
        """


def grid_map(mapping: NDArray[np.float64], prepared: Sequence[int], original: Sequence[int]) -> GridMap:
    """Choose the simplest way between two grids.

    Args:
        mapping: 4x4, from a voxel of the original grid to a voxel of the prepared volume.
        prepared: shape of the prepared volume.
        original: shape of the original grid.
    """
    targets = [int(axis) for axis in np.abs(mapping[:3, :3]).argmax(axis=1)]  # the original axis of each prepared one
    reach = np.abs(mapping[:3, :3]) * np.array(original)
    reach[range(3), targets] = 0
    if sorted(targets) != [0, 1, 2] or reach.max() > SAME_VOXELS:
        return _PositionMap(mapping, prepared)
    axes = [
        _AxisMap.of(mapping[axis, target] * np.arange(original[target]) + mapping[axis, 3], prepared[axis])
        for axis, target in enumerate(targets)
    ]
    return _ParallelMap(targets, axes)


@dataclass(frozen=True)
class _AxisMap:
    """Linear interpolation along one axis, for each index of the original axis."""

    first: int
    """The first index that is not outside."""
    last: int
    """The index after the last one that is not outside; `first` if all are."""
    lower: NDArray[np.int64]
    """The voxel of the prepared volume at or below the position."""
    share: NDArray[np.float32]
    """The weight of the voxel above it; 0 for an index."""

    @classmethod
    def of(cls, points: NDArray[np.float64], size: int) -> _AxisMap:
        """Divide positions into voxels and weights.

        Args:
            points: a position in the prepared volume for each index.
            size: voxels of the prepared volume.
        """
        inside = np.flatnonzero((points > -1 + SAME_VOXELS) & (points < size - SAME_VOXELS))
        first, last = (int(inside[0]), int(inside[-1]) + 1) if inside.size else (0, 0)
        points = np.clip(points, 0, size - 1)
        near = np.rint(points)
        points = np.where(np.abs(points - near) < SAME_VOXELS, near, points)
        lower = np.floor(points).astype(np.int64)
        return cls(first, last, lower, (points - lower).astype(np.float32))

    def inside(self, side: slice) -> slice:
        """The indices of a range that are not outside."""
        start = min(max(side.start, self.first), side.stop)
        return slice(start, max(start, min(side.stop, self.last)))

    def needed(self, side: slice) -> slice:
        """The voxels of the prepared volume that a range of indices needs."""
        lower, above = self.lower[side], self.share[side] > 0
        return slice(int(lower.min()), int((lower + above).max()) + 1)

    def sample(self, side: slice, values: Tensor, dim: int, start: int) -> Tensor:
        """Interpolate along one dimension.

        Args:
            side: a range of indices.
            values: voxels of the prepared volume.
            dim: the dimension of the axis.
            start: the voxel at which `values` start.
        """
        lower, share = self.lower[side] - start, self.share[side]
        if not share.any():
            return _selected(values, dim, lower)
        upper = np.minimum(lower + 1, values.shape[dim] - 1)
        weights = torch.from_numpy(share).to(values.device)
        weights = weights.view([-1 if axis == dim else 1 for axis in range(values.ndim)])
        return _selected(values, dim, lower).lerp(_selected(values, dim, upper), weights)


def _selected(values: Tensor, dim: int, indices: NDArray[np.int64]) -> Tensor:
    """Take indices along a dimension, without a copy where they are a range."""
    count = len(indices)
    if (np.diff(indices) == 1).all():
        return values.narrow(dim, int(indices[0]), count)
    if (np.diff(indices) == -1).all():
        return values.narrow(dim, int(indices[-1]), count).flip(dim)
    return values.index_select(dim, torch.from_numpy(indices).to(values.device))


class _ParallelMap(GridMap):
    """Grids with parallel axes: one axis after the other."""

    def __init__(self, targets: Sequence[int], axes: Sequence[_AxisMap]) -> None:
        self._targets = targets
        self._axes = axes
        """For each axis of the prepared volume, as `targets`."""

    def needed(self, chunk: Box) -> Box | None:
        sides = [axis.inside(chunk[target]) for axis, target in zip(self._axes, self._targets, strict=True)]
        if any(side.start == side.stop for side in sides):
            return None
        x, y, z = (axis.needed(side) for axis, side in zip(self._axes, sides, strict=True))
        return x, y, z

    def sample(self, chunk: Box, logits: Tensor, start: Sequence[int]) -> Sampled:
        sides = [axis.inside(chunk[target]) for axis, target in zip(self._axes, self._targets, strict=True)]
        growth = [(side.stop - side.start) / size for side, size in zip(sides, logits.shape[1:], strict=True)]
        for axis in sorted(range(3), key=growth.__getitem__):  # the axis that shrinks the most comes first
            logits = self._axes[axis].sample(sides[axis], logits, axis + 1, start[axis])
        order = [self._targets.index(axis) for axis in range(3)]
        x, y, z = (sides[axis] for axis in order)
        return Sampled((x, y, z), logits.permute(0, *(axis + 1 for axis in order)))


class _PositionMap(GridMap):
    """Grids whose axes are not parallel: a position for each voxel."""

    position_bytes = 120
    """Four arrays of three float64 at the same time, one of float32, and masks."""

    def __init__(self, mapping: NDArray[np.float64], prepared: Sequence[int]) -> None:
        self._mapping = mapping
        self._prepared = prepared

    def needed(self, chunk: Box) -> Box | None:
        corners = np.array(list(product(*((side.start, side.stop - 1) for side in chunk))))
        points = corners @ self._mapping[:3, :3].T + self._mapping[:3, 3]
        low, high, shape = points.min(axis=0), points.max(axis=0), np.array(self._prepared)
        if (high <= -1 + SAME_VOXELS).any() or (low >= shape - SAME_VOXELS).any():
            return None
        first = np.clip(np.floor(low).astype(int), 0, shape - 1)
        last = np.clip(np.ceil(high).astype(int), first, shape - 1)
        x, y, z = (slice(int(a), int(b) + 1) for a, b in zip(first, last, strict=True))
        return x, y, z

    def sample(self, chunk: Box, logits: Tensor, start: Sequence[int]) -> Sampled:
        device = logits.device
        axes = [torch.arange(side.start, side.stop, dtype=torch.float64, device=device) for side in chunk]
        points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        mapping = torch.from_numpy(self._mapping).to(device)
        points = points @ mapping[:3, :3].T + mapping[:3, 3]
        limit = torch.tensor(tuple(self._prepared), dtype=torch.float64, device=device)
        outside = ((points <= -1 + SAME_VOXELS) | (points >= limit - SAME_VOXELS)).any(dim=-1)
        size = torch.tensor(logits.shape[1:], dtype=torch.float64, device=device)
        grid = ((2 * (points - torch.tensor(tuple(start), device=device)) + 1) / size - 1).flip(-1).float()
        values = F.grid_sample(logits[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)
        return Sampled(chunk, values[0], outside)
