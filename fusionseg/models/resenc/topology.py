"""Levels of nnU-Net's residual-encoder U-Net for a spacing and a patch, and the memory budgets M, L and XL.

The three budgets have the same network. They differ in the memory that nnU-Net plans for, and so in the patch, the
number of levels that the patch allows, and the batch.

Sources: F. Isensee et al., "nnU-Net Revisited" (2024, arXiv:2404.09556), and the planners of nnU-Net 2:
ResEncUNetPlanner for widths, blocks and budgets, `get_pool_and_conv_props` for strides and kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fusionseg.config.section import Triple

BASE_CHANNELS = 32
MAX_CHANNELS = 320
_BLOCKS = (1, 3, 4, 6)


@dataclass(frozen=True)
class Budget:
    """A preset of nnU-Net's ResEnc planner."""

    memory_gb: float
    """GPU memory that the preset plans for."""
    max_map_voxels: int
    """Highest number of voxels in all maps of the network, times channels, at which nnU-Net accepts a patch with a
    batch of two."""


BUDGETS = {
    "M": Budget(8, 680_000_000),
    "L": Budget(24, 2_100_000_000),
    "XL": Budget(40, 3_600_000_000),
}
MIN_BATCH = 2
"""Samples of a batch, at least."""
MIN_EDGE = 4
"""Voxels of the lowest level along each axis that was halved, at least."""


@dataclass(frozen=True)
class Levels:
    """Levels of a network for one spacing and patch, with the keys of `model` in a configuration."""

    channels: tuple[int, ...]
    blocks: tuple[int, ...]
    kernels: tuple[Triple, ...]
    strides: tuple[Triple, ...]
    patch: Triple
    """The patch, each axis rounded up to a multiple of the product of the strides."""


def default_blocks(num_levels: int) -> tuple[int, ...]:
    """Return the residual blocks of each level: 1, 3, 4, and 6 for all further levels."""
    return tuple(_BLOCKS[min(level, len(_BLOCKS) - 1)] for level in range(num_levels))


def default_channels(num_levels: int) -> tuple[int, ...]:
    """Return the channels of each level: 32, doubled from level to level, at most 320."""
    return tuple(min(MAX_CHANNELS, BASE_CHANNELS * 2**level) for level in range(num_levels))


def network_levels(spacing: Sequence[float], patch: Sequence[int], *, min_edge: int = MIN_EDGE) -> Levels:
    """Return nnU-Net's levels for a patch.

    From level to level, an axis is halved while half of it has at least `min_edge` voxels and its voxel size is below
    twice the smallest among such axes. The kernel along an axis is 1 until its voxel size is below twice the smallest
    one; it is 3 from there on, and in the bottleneck. A last axis alone is halved only if it has at least
    3 * `min_edge` voxels.

    Args:
        spacing: voxel size in mm along each axis.
        patch: voxels along each axis.
        min_edge: voxels of the lowest level along each axis that was halved, at least.
    """
    sizes, spacings = list(patch), list(spacing)
    strides: list[Triple] = []
    kernels: list[Triple] = []
    kernel = [1, 1, 1]
    while axes := _axes_to_halve(sizes, spacings, min_edge):
        kernel = [3 if spacings[axis] / min(spacings) < 2 else kernel[axis] for axis in range(3)]
        steps = [2 if axis in axes else 1 for axis in range(3)]
        kernels.append((kernel[0], kernel[1], kernel[2]))
        strides.append((steps[0], steps[1], steps[2]))
        spacings = [size * step for size, step in zip(spacings, steps, strict=True)]
        sizes = [-(-size // step) for size, step in zip(sizes, steps, strict=True)]
    total = [1, 1, 1]
    for entry in strides:
        total = [factor * step for factor, step in zip(total, entry, strict=True)]
    x, y, z = (-(-size // factor) * factor for size, factor in zip(patch, total, strict=True))
    count = len(strides) + 1
    return Levels(default_channels(count), default_blocks(count), (*kernels, (3, 3, 3)), tuple(strides), (x, y, z))


def _axes_to_halve(sizes: Sequence[int], spacings: Sequence[float], min_edge: int) -> list[int]:
    large = [axis for axis in range(3) if sizes[axis] >= 2 * min_edge]
    if not large:
        return []
    smallest = min(spacings[axis] for axis in large)
    axes = [axis for axis in large if spacings[axis] / smallest < 2]
    return [] if len(axes) == 1 and sizes[axes[0]] < 3 * min_edge else axes
