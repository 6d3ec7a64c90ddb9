"""Networks: `build_model` makes the one that a configuration names.

All of them map volumes (B, C, X, Y, Z) to logits (B, K, X, Y, Z). MONAI is imported when a network is built,
not when this module is: its networks take seconds to import.
"""

from __future__ import annotations

from torch import nn

from fusionseg.config.networks import SegResNetConfig, SwinConfig, UNetConfig
from fusionseg.errors import UserError


def build_model(
    config: SwinConfig | UNetConfig | SegResNetConfig,
    *,
    in_channels: int,
    out_channels: int,
    checkpoint_activations: bool = False,
) -> nn.Module:
    """The network that the `model` section describes, freshly initialised, on the current default device.

    Args:
        config: the `model` section.
        in_channels: channels of the volumes; the data set says it.
        out_channels: classes, background included.
        checkpoint_activations: recompute the encoder's activations in the backward pass (Swin networks only).

    Raises:
        UserError: `checkpoint_activations` for a network that does not support it.
    """
    if isinstance(config, SwinConfig):
        from fusionseg.models.swin_fusion import SwinFusionUNETR

        return SwinFusionUNETR(
            in_channels,
            out_channels,
            feature_size=config.feature_size,
            depths=config.depths,
            num_heads=config.num_heads,
            window_size=config.window_size,
            drop_path_rate=config.drop_path_rate,
            fusion=config.fusion,
            use_checkpoint=checkpoint_activations,
        )
    if checkpoint_activations:
        raise UserError(
            f"train.checkpoint_activations: {config.name} cannot recompute its activations, only the swin_*"
            " networks can: set train.checkpoint_activations=false (a smaller data.patch or train.micro_batch"
            " saves memory too)"
        )
    if isinstance(config, UNetConfig):
        return _build_unet(config, in_channels, out_channels)
    return _build_segresnet(config, in_channels, out_channels)


def _build_unet(config: UNetConfig, in_channels: int, out_channels: int) -> nn.Module:
    from monai.networks.nets.unet import UNet

    return UNet(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=out_channels,
        channels=config.channels,
        strides=config.level_strides,
        num_res_units=config.num_res_units,
        norm=config.norm.upper(),
        dropout=config.dropout,
    )


def _build_segresnet(config: SegResNetConfig, in_channels: int, out_channels: int) -> nn.Module:
    from monai.networks.nets.segresnet import SegResNet

    return SegResNet(
        spatial_dims=3,
        init_filters=config.init_filters,
        in_channels=in_channels,
        out_channels=out_channels,
        dropout_prob=config.dropout or None,  # MONAI: None is no dropout layer at all
        blocks_down=config.blocks_down,
        blocks_up=config.blocks_up,
    )


__all__ = ["build_model"]
