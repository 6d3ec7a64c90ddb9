"""Trilinear up-sampling with a deterministic gradient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import torch
from torch import Tensor


def upsample(x_BCXYZ: Tensor, factors: Sequence[int]) -> Tensor:
    """Up-sample maps along each axis, as `F.interpolate(mode="trilinear", align_corners=False)` does.

    The up-sampling is one matrix product for each axis. On a GPU torch's own kernel sums the gradient with atomic
    additions. Their order changes from run to run, so that a resumed run would differ from an uninterrupted one
    (pytorch#154183); and they are slow where 32**3 voxels add to the same few values. The interpolation weights are
    multiples of 1 / (2 * factor): for powers of two they are exact in 16 bits too. No tensor of the size of the result
    is kept for the backward pass.

    Args:
        x_BCXYZ: maps (B, C, X, Y, Z), of any floating type.
        factors: one for each axis.

    Returns:
        (B, C, X, Y, Z) with each axis multiplied by its factor.
    """
    x, (along_x, along_y, along_z) = x_BCXYZ, factors
    if along_z > 1:
        x = x @ _weights(x, 4, along_z).mT
    if along_y > 1:
        x = _weights(x, 3, along_y) @ x
    if along_x > 1:
        x = (_weights(x, 2, along_x) @ x.flatten(3)).unflatten(3, x.shape[3:])
    return x


def total_stride(strides: Iterable[Sequence[int]]) -> tuple[int, int, int]:
    """Return the product of strides along each axis; (1, 1, 1) without a stride."""
    x, y, z = (prod(steps) for steps in zip((1, 1, 1), *strides, strict=True))
    return x, y, z


def _weights(x: Tensor, axis: int, factor: int) -> Tensor:
    """Return the interpolation matrix (factor * n, n) of an axis of n voxels; the sum of each row is 1."""
    n = x.shape[axis]
    # Centres of the new voxels in units of the original ones. Outside of the first and last centre the value is that
    # of the border voxel.
    centres = ((torch.arange(n * factor, device=x.device) + 0.5) / factor - 0.5).clamp(0, n - 1)
    distances = (centres[:, None] - torch.arange(n, device=x.device)).abs()
    return (1 - distances).clamp(min=0).to(x.dtype)
