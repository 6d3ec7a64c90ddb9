"""The networks that are MONAI's as they stand."""

from __future__ import annotations

from monai.networks.nets.segresnet import SegResNet
from torch import nn

from fusionseg.config.networks import NetworkSection, SegResNetConfig


def build_from_monai(config: NetworkSection, in_channels: int, out_channels: int) -> nn.Module:
    """The network that a `model` section describes."""
    assert isinstance(config, SegResNetConfig)
    return SegResNet(
        spatial_dims=3,
        init_filters=config.init_filters,
        in_channels=in_channels,
        out_channels=out_channels,
        dropout_prob=config.dropout or None,  # MONAI: None is no dropout layer at all
        blocks_down=config.blocks_down,
        blocks_up=config.blocks_up,
    )
