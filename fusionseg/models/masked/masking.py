"""Masking of volumes: grids of cubic blocks, visible and hidden.

A block is the unit of masking: `pretrain.block` voxels along each axis, but one token with a ViT. In
the functions below, block indices count the blocks of a batch: sample by sample, and within a sample in the memory
order of the grid. The number of visible blocks is an argument and the same for every sample: counting them would make
the host wait for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def blocks_to_voxels(hidden: Tensor, size: Sequence[int]) -> Tensor:
    """Expand a mask of blocks to a mask of voxels.

    Args:
        hidden: hidden blocks (B, gx, gy, gz), True for hidden.
        size: X, Y, Z of the volume, multiples of gx, gy, gz.

    Returns:
        hidden voxels (B, 1, X, Y, Z).
    """
    (x, y, z), (gx, gy, gz) = size, hidden.shape[1:]
    blocks = hidden[:, None, :, None, :, None, :, None]
    return blocks.expand(-1, 1, -1, x // gx, -1, y // gy, -1, z // gz).reshape(-1, 1, x, y, z)


def composite(reconstruction: Tensor, image: Tensor, hidden_voxels: Tensor) -> Tensor:
    """Return the image with its hidden voxels replaced by those of the reconstruction.

    Args:
        reconstruction: (B, C, X, Y, Z).
        image: (B, C, X, Y, Z).
        hidden_voxels: (B, 1, X, Y, Z), True for hidden.
    """
    return torch.where(hidden_voxels, reconstruction, image)


def visible_block_indices(hidden: Tensor, num_visible: int) -> Tensor:
    """Return the indices (B * num_visible,) of the visible blocks.

    Args:
        hidden: hidden blocks (B, gx, gy, gz), True for hidden.
        num_visible: number of visible blocks of each sample.
    """
    flat = hidden.flatten(1)
    batch, num_blocks = flat.shape
    visible_first = flat.int().argsort(dim=1, stable=True)[:, :num_visible]
    sample = torch.arange(batch, device=hidden.device)[:, None]
    return (visible_first + sample * num_blocks).flatten()


def split_blocks(x: Tensor, grid: Sequence[int]) -> Tensor:
    """Split volumes (B, C, X, Y, Z) into blocks (B * gx * gy * gz, C, X / gx, Y / gy, Z / gz).

    Args:
        x: the volumes.
        grid: gx, gy, gz.
    """
    (gx, gy, gz), (batch, channels, *sizes) = grid, x.shape
    ux, uy, uz = sizes[0] // gx, sizes[1] // gy, sizes[2] // gz
    parts = x.reshape(batch, channels, gx, ux, gy, uy, gz, uz)
    return parts.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(-1, channels, ux, uy, uz)


def join_blocks(blocks: Tensor, grid: Sequence[int]) -> Tensor:
    """Join blocks to volumes: the inverse of `split_blocks`."""
    (gx, gy, gz), (_, channels, ux, uy, uz) = grid, blocks.shape
    parts = blocks.reshape(-1, gx, gy, gz, channels, ux, uy, uz).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return parts.reshape(-1, channels, gx * ux, gy * uy, gz * uz)


def hidden_fractions(hidden: Tensor, size: Sequence[int]) -> Tensor:
    """Return the hidden fraction of each cell of a map, (B, 1, x, y, z), from 0 to 1.

    Args:
        hidden: hidden blocks (B, gx, gy, gz), True for hidden.
        size: x, y, z of the map, which covers the same volume.
    """
    return F.interpolate(hidden[:, None].float(), size=tuple(size), mode="area")


def add_token(x: Tensor, hidden: Tensor, token: Tensor) -> Tensor:
    """Add a token to a map (B, C, X, Y, Z), times the hidden fraction of each cell.

    Args:
        x: the map; it is not changed.
        hidden: hidden blocks (B, gx, gy, gz), True for hidden.
        token: (C).

    Returns:
        (B, C, X, Y, Z), of the dtype of `x`.
    """
    return x + hidden_fractions(hidden, x.shape[2:]).to(x.dtype) * token.to(x.dtype).view(-1, 1, 1, 1)


def insert_visible(visible: Tensor, indices: Tensor, num_blocks: int, token: Tensor) -> Tensor:
    """Put the visible blocks at their places among all blocks, and a token at the hidden places.

    Args:
        visible: visible blocks (N, C, ...).
        indices: their indices (N,), see `visible_block_indices`.
        num_blocks: number of all blocks of the batch.
        token: (C), the value of every voxel of a hidden block.

    Returns:
        (num_blocks, C, ...), of the dtype of `visible`.
    """
    shape = (-1, *[1] * (visible.dim() - 2))
    tokens = token.to(visible.dtype).view(shape).expand(num_blocks, *visible.shape[1:])
    return tokens.index_copy(0, indices, visible)
