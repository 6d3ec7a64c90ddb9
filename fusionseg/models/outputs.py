"""The form of a network's output: one tensor of logits, or in training a list of them, the full resolution first."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def outputs_as_list(module: nn.Module, inputs: Any, output: Any) -> Any:
    """Forward hook: give several logits as a list.

    In training, a tuple becomes a list, and so does a tensor (B, heads, K, X, Y, Z), as MONAI's DynUNet stacks its
    heads. In evaluation the first of several is the network's answer.
    """
    if isinstance(output, Tensor) and output.ndim == 6:
        output = list(output.unbind(1))
    elif isinstance(output, tuple):
        output = list(output)
    return output[0] if isinstance(output, list) and output and not module.training else output
