"""Networks: `build_model` makes the one that a configuration names.

All of them map volumes (B, C, X, Y, Z) to logits (B, K, X, Y, Z); in training mode, one with deep supervision gives a
list of logits, the full resolution first. MONAI is imported when a network is built, not when this module is: its
networks take seconds to import.

May import: `utils`, `config`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusionseg.config.parts.sections import NetworkSection

if TYPE_CHECKING:
    from torch import nn


def build_model(
    config: NetworkSection,
    *,
    in_channels: int,
    out_channels: int,
    patch: tuple[int, int, int] | None = None,
    checkpoint_activations: bool = False,
) -> nn.Module:
    """Build the network that a `model` section describes, freshly initialised, on the current default device.

    Args:
        config: the `model` section.
        in_channels: channels of the volumes; the data set says it.
        out_channels: classes, background included.
        patch: the size of the volumes that the network will see; only networks that embed positions ask for it.
        checkpoint_activations: recompute activations in the backward pass; the schema refuses it for a network whose
            `can_checkpoint` is false.

    Raises:
        ValueError: the network needs a patch, and there is none.
    """
    assert config.can_checkpoint or not checkpoint_activations
    return config.build(
        in_channels=in_channels,
        out_channels=out_channels,
        patch=patch,
        checkpoint_activations=checkpoint_activations,
    )


__all__ = ["build_model"]
