"""Networks: `build_model` makes the one that a configuration names.

All of them map volumes (B, C, X, Y, Z) to logits (B, K, X, Y, Z); in training mode, one with deep supervision gives a
list of logits, the full resolution first. MONAI is imported when a network is built, not when this module is: its
networks take seconds to import.

May import: `utils`, `config`.
"""

from __future__ import annotations

from torch import nn

from fusionseg.config.networks import MonaiUNetConfig, NetworkSection, SwinConfig, UNetConfig


def build_model(
    config: NetworkSection,
    *,
    in_channels: int,
    out_channels: int,
    patch: tuple[int, int, int] | None = None,
    checkpoint_activations: bool = False,
) -> nn.Module:
    """The network that the `model` section describes, freshly initialised, on the current default device.

    Args:
        config: the `model` section.
        in_channels: channels of the volumes; the data set says it.
        out_channels: classes, background included.
        patch: the size of the volumes that the network will see; only UNETR, which embeds positions, asks for it.
        checkpoint_activations: recompute activations in the backward pass; the schema refuses it for a network whose
            `can_checkpoint` is false.
    """
    assert config.can_checkpoint or not checkpoint_activations
    if isinstance(config, SwinConfig):
        from fusionseg.models.swin.network import build_swin

        return build_swin(config, in_channels, out_channels, checkpoint_activations=checkpoint_activations)
    if isinstance(config, UNetConfig | MonaiUNetConfig):
        from fusionseg.models.unet.network import build_unet

        return build_unet(config, in_channels, out_channels)
    from fusionseg.models.monai_networks import build_from_monai

    return build_from_monai(config, in_channels, out_channels, patch=patch)


__all__ = ["build_model"]
