"""Transfer of small arrays from the host to the training device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def send(values: NDArray[Any], device: torch.device) -> Tensor:
    """Copy host values to a device without waiting for it.

    Args:
        values: of any shape.
        device: of the tensor.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


_ALIGNMENT = 16
"""Bytes. Each array of a transfer begins at a multiple of it."""


def send_together(arrays: Mapping[str, NDArray[Any]], device: torch.device) -> dict[str, Tensor]:
    """Copy arrays to a device by one transfer, without waiting for it.

    Args:
        arrays: by name, of any shapes and types.
        device: of the tensors.

    Returns:
        By name, views of one tensor.
    """
    if not arrays:
        return {}
    starts, size = {}, 0
    for name, values in arrays.items():
        starts[name] = size
        size += -(-values.nbytes // _ALIGNMENT) * _ALIGNMENT
    packed = np.empty(size, np.uint8)
    for name, values in arrays.items():
        start = starts[name]
        packed[start : start + values.nbytes].view(values.dtype).reshape(values.shape)[...] = values
    sent = send(packed, device)
    return {
        name: sent[starts[name] : starts[name] + values.nbytes].view(_torch_type(values)).view(values.shape)
        for name, values in arrays.items()
    }


def _torch_type(values: NDArray[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, values.dtype)).dtype
