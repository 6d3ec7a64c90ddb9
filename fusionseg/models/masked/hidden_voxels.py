"""Hidden blocks as voxels, and the trivial ways to fill them in: the mean, and linear interpolation.

Volumes are (B, C, X, Y, Z); hidden voxels are (B, 1, X, Y, Z), True where the network was not shown the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def blocks_to_voxels(hidden: Tensor, patch: Sequence[int]) -> Tensor:
    """Blocks (B, gx, gy, gz) that tile a patch, as its voxels (B, 1, X, Y, Z)."""
    (x, y, z), (gx, gy, gz) = patch, hidden.shape[1:]
    blocks = hidden[:, None, :, None, :, None, :, None]
    return blocks.expand(-1, 1, -1, x // gx, -1, y // gy, -1, z // gz).reshape(-1, 1, x, y, z)


def composite(reconstruction: Tensor, image: Tensor, hidden_voxels: Tensor) -> Tensor:
    """The image, with the reconstruction at its hidden voxels."""
    return torch.where(hidden_voxels, reconstruction, image)


def fill_mean(image: Tensor, hidden_voxels: Tensor) -> Tensor:
    """The image, with the mean of the visible voxels of its sample and channel at its hidden voxels."""
    mean = _mean_of_each(image, ~hidden_voxels)
    return torch.where(hidden_voxels, mean, image)


def fill_linear(image: Tensor, hidden_voxels: Tensor) -> Tensor:
    """The image, its hidden voxels interpolated from the nearest visible ones before and after them on each axis.

    The up to six neighbours are weighted by the inverse of their distance. On one axis that is linear interpolation
    between two of them, and the value of the only one; the axes' answers are averaged, those with nearer neighbours
    counting more. Where no axis has a visible voxel, it is the mean of the visible ones.
    """
    visible = ~hidden_voxels
    total = torch.zeros_like(image)
    weights = torch.zeros_like(image)
    for axis in (2, 3, 4):
        for reverse in (False, True):
            value, weight = _last_visible(image, visible, axis, reverse=reverse)
            total = total + weight * value
            weights = weights + weight
    filled = torch.where(weights > 0, total / weights.clamp(min=1e-12), _mean_of_each(image, visible))
    return torch.where(hidden_voxels, filled, image)


def _last_visible(image: Tensor, visible: Tensor, axis: int, *, reverse: bool) -> tuple[Tensor, Tensor]:
    """For each voxel the last visible one before it on an axis (with `reverse`, after it): value, 1 / distance."""
    if reverse:
        value, weight = _last_visible(image.flip(axis), visible.flip(axis), axis, reverse=False)
        return value.flip(axis), weight.flip(axis)
    shape = [1] * image.dim()
    shape[axis] = -1
    place = torch.arange(image.shape[axis], device=image.device).view(shape)
    last = torch.where(visible, place, -1).cummax(dim=axis).values
    value = image.gather(axis, last.clamp(min=0).expand_as(image))
    weight = (last >= 0) / (place - last).clamp(min=1)
    return value, weight


def _mean_of_each(x: Tensor, over: Tensor) -> Tensor:
    """Mean of each sample and channel over some voxels, (B, C, 1, 1, 1)."""
    axes = (2, 3, 4)
    return torch.where(over, x, 0).sum(axes, keepdim=True) / over.sum(axes, keepdim=True)
