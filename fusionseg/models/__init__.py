"""Networks: `build_model` builds the network of a configuration.

All networks map volumes (B, C, X, Y, Z) to logits (B, K, X, Y, Z). In training mode, a network with deep supervision
returns a list of logits, full resolution first. MONAI is imported when a network is built, not with this module: the
import takes seconds.

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
    """Build the network of a `model` section with new weights, on torch's current default device.

    Args:
        config: `model` section.
        in_channels: channels of the volumes, as in the data set.
        out_channels: number of classes, the background included.
        patch: X, Y, Z of the volumes; only networks with a position embedding need it.
        checkpoint_activations: compute activations again in the backward pass. The configuration refuses it for a
            network whose `can_checkpoint` is false.

    Raises:
        ValueError: the network needs the patch, but `patch` is None.
    """
    assert config.can_checkpoint or not checkpoint_activations
    return config.build(
        in_channels=in_channels,
        out_channels=out_channels,
        patch=patch,
        checkpoint_activations=checkpoint_activations,
    )


__all__ = ["build_model"]
