"""How a network's weights lie in memory."""

from __future__ import annotations

import torch
from torch import nn

_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last_(model: nn.Module) -> None:
    """Put the kernels of all convolutions, in two dimensions and in three, in channels-last layout, in place.

    `model.to(memory_format=...)` does so for one number of dimensions, and fails on the other.
    """
    for parameter in model.parameters():
        if layout := _LAYOUTS.get(parameter.dim()):
            parameter.data = parameter.data.contiguous(memory_format=layout)
