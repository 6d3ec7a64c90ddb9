"""Weights of nnU-Net 2 and nnssl: axes of the kernels, and names by which a file lists a tensor a second time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

STATE_KEY = "network_weights"
"""Key of the state dict in a checkpoint of nnU-Net and nnssl."""
_STEM = "encoder.stem.convs.0.conv.weight"  # of ResidualEncoderUNet, whose names `resenc_unet` has


def is_residual_encoder(content: Any) -> bool:
    """Return whether the content of a file is a checkpoint of nnU-Net with a residual-encoder U-Net."""
    return isinstance(content, Mapping) and isinstance(state := content.get(STATE_KEY), Mapping) and _STEM in state


def residual_encoder_state(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of a residual-encoder U-Net for volumes (C, X, Y, Z).

    nnU-Net's volumes have the axes Z, Y, X, in the order that the plan states as `transpose_forward`. The axes of the
    kernels are brought to X, Y, Z. Biases of convolutions before a norm are left out, because they have no effect.

    Args:
        content: a checkpoint for which `is_residual_encoder` is true.
    """
    state = {name: x for name, x in content[STATE_KEY].items() if isinstance(x, Tensor)}
    order = _transpose_forward(content)
    # Axis i of nnU-Net's network is axis 2 - order[i] of X, Y, Z.
    axes = [2 + order.index(2 - axis) for axis in range(3)]
    return {
        name: x.permute(0, 1, *axes) if x.ndim == 5 else x
        for name, x in state.items()
        if not _is_second_name(name) and not (name.endswith(".conv.bias") and f"{name[:-9]}norm.weight" in state)
    }


def _is_second_name(name: str) -> bool:
    return ".all_modules." in name or name.startswith("decoder.encoder.")


def _transpose_forward(content: Mapping[str, Any]) -> list[int]:
    arguments = content.get("init_args")
    plans = arguments.get("plans") if isinstance(arguments, Mapping) else None
    order = plans.get("transpose_forward") if isinstance(plans, Mapping) else None
    return [int(axis) for axis in order] if order is not None else [0, 1, 2]
