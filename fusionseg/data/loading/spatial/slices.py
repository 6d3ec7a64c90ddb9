"""The interpolation of slices in their own plane: each position of the plane has one column through all slices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def warp_slices(image: Tensor, label: Tensor, positions: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
    """Interpolate slices: linearly in the image, the nearest voxel in the label.

    Positions and weights are computed once for all slices. A value of the result is the weighted sum of four values of
    its slice, for which torch's sum of embeddings has a fast kernel: the columns through the slices are its rows.

    Args:
        image: (C, X, Y, Z), Z the slices.
        label: (X, Y, Z) uint8.
        positions: (A, B, 2), of y and x in voxels of the image.
        background: (C, 1, 1, 1), the values outside the image; the label is 0 there.

    Returns:
        Image (C, A, B, Z) float32 and label (A, B, Z) uint8.
    """
    height, width, slices = label.shape
    y, x = positions.flatten(0, 1).unbind(-1)
    first_x, first_y = x.floor(), y.floor()
    share_x, share_y = x - first_x, y - first_y
    indices, weights = [], []
    for step_x, weight_x in ((0, 1 - share_x), (1, share_x)):
        for step_y, weight_y in ((0, 1 - share_y), (1, share_y)):
            indices.append(_column(first_x + step_x, first_y + step_y, height, width))
            weights.append(weight_x * weight_y)
    corners, shares = torch.stack(indices, dim=1), torch.stack(weights, dim=1)
    shape = (*positions.shape[:2], slices)
    warped = torch.empty((len(image), *shape), device=image.device)
    for source, outside, target in zip(image, background, warped, strict=True):
        columns = torch.zeros((height * width + 1, slices), device=image.device)  # the last column is outside
        torch.sub(source, outside, out=columns[:-1].view(source.shape))
        target.copy_(F.embedding_bag(corners, columns, per_sample_weights=shares, mode="sum").view(shape)).add_(outside)
    columns = torch.zeros((height * width + 1, slices), dtype=torch.uint8, device=label.device)
    columns[:-1].view(label.shape).copy_(label)
    nearest = columns.index_select(0, _column(x.round(), y.round(), height, width)).view(shape)
    return warped, nearest


def _column(x: Tensor, y: Tensor, height: int, width: int) -> Tensor:
    """The index of the column at whole positions; that of the column outside for positions outside of the plane."""
    inside = (x >= 0) & (x < height) & (y >= 0) & (y < width)
    return torch.where(inside, x * width + y, height * width).long()
