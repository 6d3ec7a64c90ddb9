"""The U-Nets."""

from __future__ import annotations

from monai.networks.nets.unet import UNet
from torch import nn

from fusionseg.config.networks import UNetConfig


def build_unet(config: UNetConfig, in_channels: int, out_channels: int) -> nn.Module:
    """The U-Net that a `model` section describes."""
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
