"""Memory that kernels of the CPU take for themselves while they run: the convolutions of torch and of oneDNN."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

_SMALL = 20480
"""Values of a map, its last axis left out, up to which torch takes its own kernel (`use_mkldnn` in Convolution.cpp)."""
_BLOCK = 16
"""oneDNN pads the channels of its copies to a multiple of this number (with AVX-512)."""

_FEW = 4


def cpu_workspace(func: Any, args: Sequence[Any], result: Any) -> int:
    """Bytes that the kernel of a 3D convolution takes on a CPU; 0 for all other operations.

    torch's own kernel, for small maps, copies the neighbourhood of each voxel to a column. oneDNN copies maps to its
    own layout. The bytes of these copies were found by observing torch's allocator (torch 2.13, AVX-512, one thread).
    Copies of weights are left out.

    Args:
        func: the operation.
        args: its arguments.
        result: its result.
    """
    if func is torch.ops.aten.convolution.default:
        image, weight, _, stride, _, dilation, transposed, *_ = args
        output, is_backward = result, False
    elif func is torch.ops.aten.convolution_backward.default:
        output, image, weight, _, stride, _, dilation, transposed, *_ = args
        is_backward = True
    else:
        return 0
    kernel = weight.shape[2:]
    if len(kernel) != 3:
        return 0
    one_by_one = all(value == 1 for value in (*stride, *dilation))
    is_small = one_by_one and not transposed and prod(image.shape[:4]) <= _SMALL and max(kernel) <= 3
    if is_small and image.dtype == torch.float32 and weight.shape[1] == image.shape[1]:
        return image.nbytes * prod(kernel)
    if _is_channels_last(image):
        return _padded(image) + _padded(output) if is_backward and image.dtype != torch.float32 else 0
    if is_backward:
        return _of_backward(image, output, single=max(kernel) == 1, strided=not one_by_one and not transposed)
    return _of_forward(image, output, single=max(kernel) == 1, transposed=transposed)


def _of_forward(image: Tensor, output: Tensor, *, single: bool, transposed: bool) -> int:
    """Copies beside the output.

    Args:
        image: input.
        output: output.
        single: the kernel has one voxel.
        transposed: transposed convolution.
    """
    if transposed:
        return 2 * output.nbytes
    if single:
        return 0 if image.dtype == torch.float32 else _padded(image) + 3 * _padded(output) - output.nbytes
    return max(_padded(image) + _padded(output) - output.nbytes, _padded(output))


def _of_backward(image: Tensor, output: Tensor, *, single: bool, strided: bool) -> int:
    """Copies beside the gradient of the input.

    Args:
        image: input.
        output: gradient of the output.
        single: the kernel has one voxel.
        strided: convolution with a stride.
    """
    if image.dtype == torch.float32:
        if single:
            return image.nbytes
        return 2 * image.nbytes if strided else _padded(image) + _padded(output)
    if single:
        return 3 * _padded(image) + _padded(output) - image.nbytes
    # Images of one to three channels are read as they are.
    return (1 if image.shape[1] < _FEW else 2) * (_padded(image) + _padded(output))


def _padded(maps: Tensor) -> int:
    """Bytes of maps (N, C, X, Y, Z) whose channels are padded to whole blocks."""
    channels = maps.shape[1]
    return maps.nbytes // channels * (-(-channels // _BLOCK) * _BLOCK)


def _is_channels_last(maps: Tensor) -> bool:
    return maps.is_contiguous(memory_format=torch.channels_last_3d) and not maps.is_contiguous()
