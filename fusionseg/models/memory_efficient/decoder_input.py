"""Input of a decoder block: the lower map, up-sampled by a transposed convolution, concatenated with the skip.

A transposed convolution with kernel 2 and stride 2 makes eight voxels of each voxel. It is a matrix product and a
permutation; its result is written directly to its channels beside the skip. Maps are in channels-last memory format.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fusionseg.models.memory_efficient.autograd_helpers import uses_chunks


def join_inputs(*inputs: Tensor) -> Tensor:
    """Return the input of a block.

    Args:
        inputs: one map, which is returned as it is; or the lower map (B, D, X, Y, Z), the skip (B, C, 2 X, 2 Y, 2 Z)
            and the weight (D, E, 2, 2, 2) of the transposed convolution.

    Returns:
        (B, E + C, 2 X, 2 Y, 2 Z), the up-sampled map first.
    """
    if len(inputs) == 1:
        return inputs[0]
    low, skip, weight = inputs
    channels = weight.shape[1]
    if not (uses_chunks(skip) or torch.jit.is_tracing()):
        octants = (low.permute(0, 2, 3, 4, 1) @ _octant_weight(weight, low.dtype)).unflatten(4, (2, 2, 2, channels))
        pair = [octants.permute(0, 1, 4, 2, 5, 3, 6, 7), _split_axes(skip.permute(0, 2, 3, 4, 1))]
        return torch.cat(pair, -1).view(len(skip), *skip.shape[2:], -1).permute(0, 4, 1, 2, 3)
    joined = skip.new_empty(len(skip), *skip.shape[2:], channels + skip.shape[1])
    _octants(joined[..., :channels]).copy_(
        (low.permute(0, 2, 3, 4, 1) @ _octant_weight(weight, low.dtype)).unflatten(4, (2, 2, 2, channels))
    )
    joined[..., channels:] = skip.permute(0, 2, 3, 4, 1)
    return joined.permute(0, 4, 1, 2, 3)


def join_inputs_grads(grad: Tensor | None, *inputs: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of the inputs of `join_inputs`, given that of its result; all None if that is None."""
    if len(inputs) == 1 or grad is None:
        return grad, *([None] * (len(inputs) - 1))
    low, _, weight = inputs
    channels = weight.shape[1]
    grad_octants = _octants(grad.permute(0, 2, 3, 4, 1)[..., :channels]).flatten(4).contiguous()
    grad_skip = grad[:, channels:].contiguous(memory_format=torch.channels_last_3d)
    flat = grad_octants.flatten(0, 3)
    grad_low = (grad_octants @ _octant_weight(weight, low.dtype).mT).permute(0, 4, 1, 2, 3)
    product = low.permute(0, 2, 3, 4, 1).flatten(0, 3).mT @ flat
    grad_weight = product.view(-1, 2, 2, 2, channels).permute(0, 4, 1, 2, 3).to(weight.dtype)
    return grad_low, grad_skip, grad_weight


def _octants(x_BXYZC: Tensor) -> Tensor:
    """Return a view (B, X/2, Y/2, Z/2, 2, 2, 2, C) of groups of 2 x 2 x 2 voxels."""
    return _split_axes(x_BXYZC).permute(0, 1, 3, 5, 2, 4, 6, 7)


def _split_axes(x_BXYZC: Tensor) -> Tensor:
    """Return a view (B, X/2, 2, Y/2, 2, Z/2, 2, C)."""
    _, x, y, z, _ = x_BXYZC.shape
    return x_BXYZC.unflatten(3, (z // 2, 2)).unflatten(2, (y // 2, 2)).unflatten(1, (x // 2, 2))


def _octant_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight (in, out, 2, 2, 2) of a transposed convolution as a matrix (in, 8 * out)."""
    return weight.to(dtype).permute(0, 2, 3, 4, 1).flatten(1)
