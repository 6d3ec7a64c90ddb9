"""Output format of networks: one tensor of logits, or in training mode a list of logits, full resolution first."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def outputs_as_list(module: nn.Module, inputs: Any, output: Any) -> Any:
    """Forward hook that converts several logits to a list.

    In training mode a tuple becomes a list, and so does a tensor (B, heads, K, X, Y, Z), the format of MONAI's DynUNet.
    In evaluation mode the first one of several logits is the output.
    """
    if isinstance(output, Tensor) and output.ndim == 6:
        output = list(output.unbind(1))
    elif isinstance(output, tuple):
        output = list(output)
    return output[0] if isinstance(output, list) and output and not module.training else output
