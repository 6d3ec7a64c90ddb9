"""The input of a decoder's block: the map from below, doubled in size by a transposed convolution, and the skip.

A transposed convolution whose kernel and stride are 2 makes eight voxels of each one: a matrix product and a
permutation, whose result goes straight to its place beside the skip. Maps are channels last in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fusionseg.models.memory_efficient.arithmetic import add_product, sum_dtype


def assemble(*source: Tensor) -> Tensor:
    """The block's input: the map itself; or the map from below, doubled in size, and the skip, one after the other."""
    if len(source) == 1:
        return source[0]
    low, skip, weight = source
    channels = weight.shape[1]
    joined = skip.new_empty(len(skip), *skip.shape[2:], channels + skip.shape[1])
    _octants(joined[..., :channels]).copy_(
        (low.permute(0, 2, 3, 4, 1) @ _octant_weight(weight, low.dtype)).unflatten(4, (2, 2, 2, channels))
    )
    joined[..., channels:] = skip.permute(0, 2, 3, 4, 1)
    return joined.permute(0, 4, 1, 2, 3)


def assemble_grads(grad: Tensor | None, *source: Tensor) -> tuple[Tensor | None, ...]:
    if len(source) == 1 or grad is None:
        return grad, *([None] * (len(source) - 1))
    low, _, weight = source
    channels = weight.shape[1]
    grad_octants = _octants(grad.permute(0, 2, 3, 4, 1)[..., :channels]).flatten(4).contiguous()
    grad_skip = grad[:, channels:].contiguous(memory_format=torch.channels_last_3d)
    flat = grad_octants.flatten(0, 3)
    grad_low = (grad_octants @ _octant_weight(weight, low.dtype).mT).permute(0, 4, 1, 2, 3)
    total = torch.zeros(low.shape[1], flat.shape[1], dtype=sum_dtype(low), device=low.device)
    add_product(total, low.permute(0, 2, 3, 4, 1).flatten(0, 3), flat)
    grad_weight = total.view(-1, 2, 2, 2, channels).permute(0, 4, 1, 2, 3).to(weight.dtype)
    return grad_low, grad_skip, grad_weight


def _octants(x_BXYZC: Tensor) -> Tensor:
    """A view (B, X/2, Y/2, Z/2, 2, 2, 2, C): the eight voxels that come of one."""
    _, x, y, z, _ = x_BXYZC.shape
    split = x_BXYZC.unflatten(3, (z // 2, 2)).unflatten(2, (y // 2, 2)).unflatten(1, (x // 2, 2))
    return split.permute(0, 1, 3, 5, 2, 4, 6, 7)


def _octant_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A transposed convolution of kernel and stride 2, (in, out, 2, 2, 2), as a matrix (in, 8 * out)."""
    return weight.to(dtype).permute(0, 2, 3, 4, 1).flatten(1)
