"""Memory that kernels of the CPU take for themselves while they run."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

_SMALL = 20480
"""Values of a map, its last axis left out, up to which torch takes its own kernel (`use_mkldnn` in Convolution.cpp)."""


def cpu_workspace(func: Any, args: Sequence[Any]) -> int:
    """Bytes that torch's kernel of a 3D convolution of a small map takes on a CPU; 0 for all other operations.

    The kernel copies the neighbourhood of each voxel to a column. The kernels of oneDNN, for all other convolutions,
    take some copies of their maps, which are not counted.

    Args:
        func: the operation.
        args: its arguments.
    """
    if func is torch.ops.aten.convolution.default:
        image, weight, _, stride, _, dilation, transposed, *_ = args
    elif func is torch.ops.aten.convolution_backward.default:
        _, image, weight, _, stride, _, dilation, transposed, *_ = args
    else:
        return 0
    kernel = weight.shape[2:]
    one_by_one = all(value == 1 for value in (*stride, *dilation))
    is_small = one_by_one and not transposed and prod(image.shape[:4]) <= _SMALL and max(kernel) <= 3
    is_taken = is_small and len(kernel) == 3 and image.dtype == torch.float32 and weight.shape[1] == image.shape[1]
    return image.nbytes * prod(kernel) if is_taken else 0
