"""Blocks of the U-Nets: convolutions with or without a residual connection, and the attention gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks.convolutions import Convolution
from monai.networks.layers.factories import Pool
from monai.networks.layers.utils import get_act_layer, get_norm_layer
from torch import Tensor, nn

INITIAL_GATE_SCORE = 3.0
"""Initial bias of a gate's score: sigmoid(3) = 0.95 passes the skip on, as in Oktay et al. (2018, section 3), and its
gradient is still large enough to learn."""


@dataclass(frozen=True)
class BlockSettings:
    """Settings that are the same for all blocks of a network."""

    dims: int
    """2 or 3 spatial dimensions."""
    norm: tuple[str, dict[str, Any]]
    """Name and arguments of MONAI's norm layer."""
    activation: tuple[str, dict[str, Any]]
    """Name and arguments of MONAI's activation layer."""
    dropout: float | None
    """Probability that a channel is dropped; None for no dropout layer."""
    separable: bool
    """Depthwise separable convolutions (Chollet, 2017, arXiv:1610.02357)."""
    convs: int
    """Convolutions of a block."""
    residual: bool
    """Add the input of a block to its output before the last activation (He et al., 2016, arXiv:1512.03385)."""


def convolution(
    settings: BlockSettings,
    in_channels: int,
    out_channels: int,
    *,
    kernel: int = 3,
    stride: Sequence[int] | int = 1,
    activated: bool = True,
    separable: bool = False,
) -> nn.Module:
    """Build a convolution, norm, dropout of channels and activation. There is no bias: the norm has one.

    Args:
        settings: norm, activation, dropout and number of dimensions.
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: edge of the kernel in voxels.
        stride: one number, or one for each axis.
        activated: end with the activation.
        separable: split the convolution into a depthwise and a pointwise one.
    """
    separate = separable and kernel > 1
    full = Convolution(
        settings.dims,
        in_channels,
        out_channels,
        strides=1 if separate else stride,
        kernel_size=1 if separate else kernel,
        norm=settings.norm,
        act=settings.activation if activated else None,
        dropout=settings.dropout,
        dropout_dim=settings.dims,
        bias=False,
    )
    if not separate:
        return full
    # No norm or activation between the two: they made results worse (Chollet, 2017, section 4.7, arXiv:1610.02357).
    depthwise = Convolution(
        settings.dims,
        in_channels,
        in_channels,
        strides=stride,
        kernel_size=kernel,
        groups=in_channels,
        bias=False,
        conv_only=True,
    )
    return nn.Sequential(depthwise, full)


class ConvBlock(nn.Module):
    """Convolutions of one level: map (B, in_channels, ...) to (B, out_channels, ... / stride).

    A residual connection between different sizes is an average pooling over the stride (ResNet-D: He et al., 2019,
    section 4, arXiv:1812.01187); between different numbers of channels it is a pointwise convolution.

    MONAI's ResidualUnit is not used: it has no separable convolutions and no activation after the sum.

    Args:
        settings: number of convolutions, norm, activation and so on.
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: stride of the first convolution along each axis.
        first: the block reads the image. Its first convolution is not separable then: a depthwise convolution of the
            few channels of an image would have equally few filters.
    """

    def __init__(
        self,
        settings: BlockSettings,
        in_channels: int,
        out_channels: int,
        stride: Sequence[int],
        *,
        first: bool = False,
    ) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(
                convolution(
                    settings,
                    out_channels if index else in_channels,
                    out_channels,
                    stride=1 if index else stride,
                    activated=not settings.residual or index < settings.convs - 1,
                    separable=settings.separable and not (first and index == 0),
                )
                for index in range(settings.convs)
            )
        )
        self.shortcut: nn.Module | None = None
        if settings.residual:
            self.shortcut = nn.Sequential()
            if max(stride) > 1:
                self.shortcut.append(Pool[Pool.AVG, settings.dims](tuple(stride)))
            if in_channels != out_channels:
                matched = convolution(
                    replace(settings, dropout=None), in_channels, out_channels, kernel=1, activated=False
                )
                self.shortcut.append(matched)
            self.activation = get_act_layer(settings.activation)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.convs(x)
        if self.shortcut is not None:
            out = self.activation(out + self.shortcut(x))
        return out


class AttentionGate(nn.Module):
    """Attention gate: scales each voxel of a skip connection by a weight from 0 to 1.

    The weight is computed from the skip and from the coarser map of the decoder (Oktay et al., 2018, section 2.1,
    arXiv:1804.03999).

    MONAI's gate is not used: it always has batch norm, so that the samples of a micro-batch would depend on each other.
    Here the norm before the activation is that of the network. The score has no norm: with a single channel, a norm
    would close about as many gates as it opens.

    Args:
        settings: norm, activation and number of dimensions.
        skip_channels: channels of the skip.
        gating_channels: channels of the coarser map.
        stride: ratio of the two resolutions along each axis.
    """

    def __init__(
        self, settings: BlockSettings, skip_channels: int, gating_channels: int, stride: Sequence[int]
    ) -> None:
        super().__init__()
        conv_only = {"conv_only": True, "padding": 0}
        self.from_skip = Convolution(
            settings.dims, skip_channels, skip_channels, strides=stride, kernel_size=stride, bias=False, **conv_only
        )
        self.from_gating = Convolution(
            settings.dims, gating_channels, skip_channels, kernel_size=1, bias=False, **conv_only
        )
        self.norm = get_norm_layer(settings.norm, settings.dims, skip_channels)
        self.score = Convolution(settings.dims, skip_channels, 1, kernel_size=1, **conv_only)
        nn.init.constant_(self.score.conv.bias, INITIAL_GATE_SCORE)
        self.mode = "trilinear" if settings.dims == 3 else "bilinear"

    def weights(self, skip: Tensor, gating: Tensor) -> Tensor:
        """Compute the weights (B, 1, ...) from 0 to 1, at the resolution of the skip."""
        joint = F.relu(self.norm(self.from_skip(skip) + self.from_gating(gating)))
        coarse = torch.sigmoid(self.score(joint))
        return F.interpolate(coarse, size=skip.shape[2:], mode=self.mode, align_corners=False)

    def forward(self, skip: Tensor, gating: Tensor) -> Tensor:
        """Scale the skip (B, skip_channels, ...) by the map (B, gating_channels, ... / stride)."""
        return skip * self.weights(skip, gating)
