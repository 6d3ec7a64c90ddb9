"""Trilinear up-sampling whose gradient is the same on every run."""

from __future__ import annotations

import torch
from torch import Tensor


def upsample(x_BCXYZ: Tensor, by: int) -> Tensor:
    """The maps at `by` times their size in each axis, as `F.interpolate(mode="trilinear", align_corners=False)`.

    Made of one matrix product for each axis. The gradient of torch's own kernel is summed by atomic additions on a
    GPU: in another order on every run, so a resumed run would differ from an uninterrupted one (pytorch#154183), and
    slowly where 32**3 voxels add to the same few. The weights are fractions of `by`: for the powers of two that occur
    here they are exact in 16 bits too. Nothing as large as the result is kept for the backward pass.
    """
    if by == 1:
        return x_BCXYZ
    x = x_BCXYZ @ _weights(x_BCXYZ, 4, by).mT
    x = _weights(x_BCXYZ, 3, by) @ x
    return (_weights(x_BCXYZ, 2, by) @ x.flatten(3)).unflatten(3, x.shape[3:])


def _weights(x: Tensor, axis: int, by: int) -> Tensor:
    """What each voxel of an axis takes from each of the original ones: (by * n, n), rows of sum 1."""
    n = x.shape[axis]
    # Centres of the new voxels, in original ones; beyond the first and the last centre their values are repeated.
    centres = ((torch.arange(n * by, device=x.device) + 0.5) / by - 0.5).clamp(0, n - 1)
    distances = (centres[:, None] - torch.arange(n, device=x.device)).abs()
    return (1 - distances).clamp(min=0).to(x.dtype)
