"""The U-Net family: plain, with residual blocks, with attention gates; in 3D or over 2D slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.blocks.convolutions import Convolution
from torch import Tensor, nn

from fusionseg.models.unet.blocks import AttentionGate, BlockSettings, ConvBlock

_ACTIVATIONS: dict[str, dict[str, Any]] = {
    "leakyrelu": {"negative_slope": 0.01, "inplace": True},
    "relu": {"inplace": True},
}


class UNet(nn.Module):
    """U-Net with 3D convolutions, or with 2D convolutions over the slices of a volume.

    Args:
        in_channels: channels of the volumes.
        out_channels: number of classes, background included.
        channels: channels of each level, highest resolution first.
        strides: downsampling factors between the levels, one for each axis of the network; one entry fewer than
            channels.
        settings: settings of the blocks.
        gates: attention gates on all skip connections except that of full resolution.
        deep_supervision: in training, heads at the lower resolutions of the decoder too, except the two lowest levels.
        stack_axis: axis of a volume (0, 1, 2) along which the slices are stacked; None for 3D convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: Sequence[int],
        strides: Sequence[tuple[int, ...]],
        settings: BlockSettings,
        gates: bool = False,
        deep_supervision: bool = False,
        stack_axis: int | None = None,
    ) -> None:
        super().__init__()
        widths = channels
        levels = len(widths)
        no_stride = (1,) * settings.dims
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
                    settings.dims,
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
            if gates and level > 0:
                self.gates[str(level)] = AttentionGate(settings, here, below, stride)
            self.decoder.append(ConvBlock(settings, 2 * here, here, no_stride))
        num_heads = levels - 2 if deep_supervision else 1
        self.heads = nn.ModuleList(
            Convolution(settings.dims, width, out_channels, kernel_size=1, conv_only=True)
            for width in widths[:num_heads]
        )
        self.stack_axis = stack_axis

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


def block_settings(
    dims: int,
    norm: str,
    groups: int,
    activation: str,
    *,
    dropout: float,
    separable: bool,
    convs: int,
    residual: bool,
) -> BlockSettings:
    """Make the settings of the blocks from the keys of the configuration.

    Args:
        dims: 3, or 2 for slices.
        norm: "instance", "group" or "batch".
        groups: of group norm.
        activation: "leakyrelu" or "relu".
        dropout: probability that a channel is dropped.
        separable: depthwise separable convolutions.
        convs: convolutions of a block.
        residual: residual blocks.
    """
    norms: dict[str, dict[str, Any]] = {"instance": {"affine": True}, "group": {"num_groups": groups}, "batch": {}}
    return BlockSettings(
        dims=dims,
        norm=(norm, norms[norm]),
        activation=(activation, _ACTIVATIONS[activation]),
        dropout=dropout or None,
        separable=separable,
        convs=convs,
        residual=residual,
    )
