"""The U-Nets: ours, with residual blocks, attention gates, in three dimensions or over slices; and MONAI's."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.blocks.convolutions import Convolution
from monai.networks.nets.unet import UNet as MonaiUNet
from torch import Tensor, nn

from fusionseg.config.networks import MonaiUNetConfig, UNetConfig
from fusionseg.models.unet.blocks import AttentionGate, BlockSettings, ConvBlock

_ACTIVATIONS: dict[str, dict[str, Any]] = {
    "leakyrelu": {"negative_slope": 0.01, "inplace": True},
    "relu": {"inplace": True},
}


class UNet(nn.Module):
    """A U-Net of the family that `UNetConfig` describes.

    Args:
        config: the `model` section.
        in_channels: channels of the volumes.
        out_channels: classes, background included.
    """

    def __init__(self, config: UNetConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        settings = _block_settings(config)
        widths, strides = config.channels, config.level_strides
        levels = len(widths)
        no_stride = (1,) * config.dims
        self.encoder = nn.ModuleList([ConvBlock(settings, in_channels, widths[0], no_stride, first=True)])
        self.up = nn.ModuleList()
        self.gates = nn.ModuleDict()
        self.decoder = nn.ModuleList()
        for level in range(levels - 1):
            here, below, stride = widths[level], widths[level + 1], strides[level]
            self.encoder.append(ConvBlock(settings, here, below, stride))
            # The kernel equals the stride: each voxel of the lower level gives the voxels that it covers.
            self.up.append(
                Convolution(
                    config.dims,
                    below,
                    here,
                    strides=stride,
                    kernel_size=stride,
                    padding=0,
                    output_padding=0,
                    is_transposed=True,
                    conv_only=True,
                )
            )
            if config.has_gates and level > 0:
                self.gates[str(level)] = AttentionGate(settings, here, below, stride)
            self.decoder.append(ConvBlock(settings, 2 * here, here, no_stride))
        num_heads = levels - 2 if config.deep_supervision else 1
        self.heads = nn.ModuleList(
            Convolution(config.dims, width, out_channels, kernel_size=1, conv_only=True) for width in widths[:num_heads]
        )
        self.stack_axis = config.stack_axis

    def forward(self, volumes: Tensor) -> Tensor | list[Tensor]:
        """Map volumes (B, in_channels, X, Y, Z) to logits (B, out_channels, X, Y, Z).

        In training mode with deep supervision the result is a list of logits of decreasing resolution, the full
        resolution first.
        """
        if self.stack_axis is None:
            logits = self._heads(volumes)
        else:
            dim = 2 + self.stack_axis
            slices = volumes.movedim(dim, 1)
            count = slices.shape[1]
            logits = [part.unflatten(0, (-1, count)).movedim(1, dim) for part in self._heads(slices.flatten(0, 1))]
        return logits if self.training and len(self.heads) > 1 else logits[0]

    def _heads(self, x: Tensor) -> list[Tensor]:
        """Return the logits of all heads, full resolution first; in evaluation mode only those of the first head."""
        skips: list[Tensor] = []
        for block in self.encoder:
            x = block(x)
            skips.append(x)
        logits: list[Tensor] = []
        for level in reversed(range(len(self.decoder))):
            skip = skips[level]
            if str(level) in self.gates:
                skip = self.gates[str(level)](skip, x)
            x = self.decoder[level](torch.cat([self.up[level](x), skip], dim=1))
            if level == 0 or (self.training and level < len(self.heads)):
                logits.append(self.heads[level](x))
        return logits[::-1]


def _block_settings(config: UNetConfig) -> BlockSettings:
    norms: dict[str, dict[str, Any]] = {
        "instance": {"affine": True},
        "group": {"num_groups": config.groups},
        "batch": {},
    }
    return BlockSettings(
        dims=config.dims,
        norm=(config.norm, norms[config.norm]),
        activation=(config.activation, _ACTIVATIONS[config.activation]),
        dropout=config.dropout or None,
        separable=config.separable,
        convs=config.convs_per_level,
        residual=config.is_residual,
    )


def build_unet(config: UNetConfig | MonaiUNetConfig, in_channels: int, out_channels: int) -> nn.Module:
    """The U-Net that a `model` section describes."""
    if isinstance(config, UNetConfig):
        return UNet(config, in_channels, out_channels)
    monai_unet: nn.Module = MonaiUNet(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=out_channels,
        channels=config.channels,
        strides=config.level_strides,
        num_res_units=config.num_res_units,
        norm=config.norm.upper(),
        dropout=config.dropout,
    )
    return monai_unet
