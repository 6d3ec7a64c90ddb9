"""Volumes as grids of cubic units, and the visible ones among them.

Rows number the units of a micro-batch: sample by sample, within a sample as the grid lies in memory. The number of
visible units is given, the same for every sample: counting them would make the host wait for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def visible_rows(hidden: Tensor, visible: int) -> Tensor:
    """Rows of the visible units, (B * visible,), of hidden ones (B, gx, gy, gz)."""
    flat = hidden.flatten(1)
    batch, units = flat.shape
    first = flat.int().argsort(dim=1, stable=True)[:, :visible]
    sample = torch.arange(batch, device=hidden.device)[:, None]
    return (first + sample * units).flatten()


def split_units(x: Tensor, grid: Sequence[int]) -> Tensor:
    """(B, C, X, Y, Z) as its units (B * gx * gy * gz, C, x, y, z)."""
    (gx, gy, gz), (batch, channels, *sizes) = grid, x.shape
    ux, uy, uz = sizes[0] // gx, sizes[1] // gy, sizes[2] // gz
    parts = x.reshape(batch, channels, gx, ux, gy, uy, gz, uz)
    return parts.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(-1, channels, ux, uy, uz)


def join_units(units: Tensor, grid: Sequence[int]) -> Tensor:
    """The inverse of split_units."""
    (gx, gy, gz), (_, channels, ux, uy, uz) = grid, units.shape
    parts = units.reshape(-1, gx, gy, gz, channels, ux, uy, uz).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return parts.reshape(-1, channels, gx * ux, gy * uy, gz * uz)


def hidden_shares(hidden: Tensor, sizes: Sequence[int]) -> Tensor:
    """How much of each cell of a grid or map (x, y, z) is hidden, (B, 1, x, y, z), of hidden blocks (B, gx, gy, gz)."""
    return F.interpolate(hidden[:, None].float(), size=tuple(sizes), mode="area")


def fill_rows(visible: Tensor, rows: Tensor, num_rows: int, token: Tensor) -> Tensor:
    """All units (num_rows, C, ...): the visible ones (rows, C, ...) in their rows, the token (C) everywhere else."""
    shape = (-1, *[1] * (visible.dim() - 2))
    everywhere = token.to(visible.dtype).view(shape).expand(num_rows, *visible.shape[1:])
    return everywhere.index_copy(0, rows, visible)
