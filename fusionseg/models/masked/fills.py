"""Fills of hidden voxels without a network: the mean of the visible voxels, and linear interpolation.

Volumes are (B, C, X, Y, Z); hidden voxels are (B, 1, X, Y, Z), True for hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fill_mean(image: Tensor, hidden_voxels: Tensor) -> Tensor:
    """Replace hidden voxels by the mean of the visible voxels of their sample and channel.

    Args:
        image: (B, C, X, Y, Z).
        hidden_voxels: (B, 1, X, Y, Z), True for hidden.
    """
    mean = _masked_mean(image, ~hidden_voxels)
    return torch.where(hidden_voxels, mean, image)


def fill_linear(image: Tensor, hidden_voxels: Tensor) -> Tensor:
    """Replace hidden voxels by an interpolation of the nearest visible voxels in both directions along each axis.

    These at most six neighbours are weighted by the inverse of their distance. Along one axis this is the linear
    interpolation between two neighbours, or the value of the only one. A voxel without a visible neighbour along any
    axis gets the mean of the visible voxels.

    Args:
        image: (B, C, X, Y, Z).
        hidden_voxels: (B, 1, X, Y, Z), True for hidden.
    """
    visible = ~hidden_voxels
    total = torch.zeros_like(image)
    weights = torch.zeros_like(image)
    for axis in (2, 3, 4):
        for reverse in (False, True):
            value, weight = _previous_visible(image, visible, axis, reverse=reverse)
            total = total + weight * value
            weights = weights + weight
    filled = torch.where(weights > 0, total / weights.clamp(min=1e-12), _masked_mean(image, visible))
    return torch.where(hidden_voxels, filled, image)


def _previous_visible(image: Tensor, visible: Tensor, axis: int, *, reverse: bool) -> tuple[Tensor, Tensor]:
    """Return value and 1 / distance of the nearest visible voxel before each voxel along an axis.

    The distance is in voxels; a visible voxel counts as its own neighbour at distance 1. The weight is 0 where there is
    no visible voxel.

    Args:
        reverse: look for the nearest visible voxel after each voxel instead.
    """
    if reverse:
        value, weight = _previous_visible(image.flip(axis), visible.flip(axis), axis, reverse=False)
        return value.flip(axis), weight.flip(axis)
    shape = [1] * image.dim()
    shape[axis] = -1
    position = torch.arange(image.shape[axis], device=image.device).view(shape)
    previous = torch.where(visible, position, -1).cummax(dim=axis).values
    value = image.gather(axis, previous.clamp(min=0).expand_as(image))
    weight = (previous >= 0) / (position - previous).clamp(min=1)
    return value, weight


def _masked_mean(x: Tensor, over: Tensor) -> Tensor:
    """Return the mean of each sample and channel over the voxels that are True in `over`, (B, C, 1, 1, 1)."""
    axes = (2, 3, 4)
    return torch.where(over, x, 0).sum(axes, keepdim=True) / over.sum(axes, keepdim=True)
