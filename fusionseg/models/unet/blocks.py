"""The parts of the U-Nets: convolutions in a row, with a residual connection or without, and the attention gate."""

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

# The gate's score at the start: sigmoid(3) = 0.95 lets the skip through, as in Oktay et al. (2018, section 3), and is
# not yet so flat that nothing is learned.
OPEN_GATE = 3.0


@dataclass(frozen=True)
class Style:
    """What all levels of a network have in common; norm and activation in MONAI's terms."""

    dims: int
    norm: tuple[str, dict[str, Any]]
    activation: tuple[str, dict[str, Any]]
    dropout: float | None
    separable: bool
    convs: int
    """Convolutions in a level."""
    residual: bool
    """Add a level's input to its output before the last activation (He et al., 2016, arXiv:1512.03385)."""


def convolution(
    style: Style,
    in_channels: int,
    out_channels: int,
    *,
    kernel: int = 3,
    stride: Sequence[int] | int = 1,
    activated: bool = True,
    separable: bool = False,
) -> nn.Module:
    """Convolution, norm, dropout of whole channels, activation. No bias: the norm that follows has one."""
    separate = separable and kernel > 1
    full = Convolution(
        style.dims,
        in_channels,
        out_channels,
        strides=1 if separate else stride,
        kernel_size=1 if separate else kernel,
        norm=style.norm,
        act=style.activation if activated else None,
        dropout=style.dropout,
        dropout_dim=style.dims,
        bias=False,
    )
    if not separate:
        return full
    # Nothing between the two: neither norm nor activation there helped Chollet (2017, arXiv:1610.02357, section 4.7).
    depthwise = Convolution(
        style.dims,
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
    """The convolutions of one level: maps (B, in_channels, ...) to (B, out_channels, ... / stride).

    MONAI's ResidualUnit is not used, for it knows neither separable convolutions nor an activation after the sum.

    Args:
        style: how many convolutions, their norm and the like. Where a residual connection joins different sizes, it
            is averaged over the stride (He et al., 2019, arXiv:1812.01187, ResNet-D) and goes through a pointwise
            convolution.
        stride: of the first convolution, per axis.
        first: the block reads the image itself: separating its few channels would leave as few filters.
    """

    def __init__(
        self,
        style: Style,
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
                    style,
                    out_channels if number else in_channels,
                    out_channels,
                    stride=1 if number else stride,
                    activated=not style.residual or number < style.convs - 1,
                    separable=style.separable and not (first and number == 0),
                )
                for number in range(style.convs)
            )
        )
        self.shortcut: nn.Module | None = None
        if style.residual:
            self.shortcut = nn.Sequential()
            if max(stride) > 1:
                self.shortcut.append(Pool[Pool.AVG, style.dims](tuple(stride)))
            if in_channels != out_channels:
                matched = convolution(
                    replace(style, dropout=None), in_channels, out_channels, kernel=1, activated=False
                )
                self.shortcut.append(matched)
            self.activation = get_act_layer(style.activation)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.convs(x)
        if self.shortcut is not None:
            out = self.activation(out + self.shortcut(x))
        return out


class AttentionGate(nn.Module):
    """Scales a skip connection, voxel by voxel, by what the coarser decoder map says of the place (Oktay et al., 2018,
    arXiv:1804.03999, section 2.1).

    Ours, for MONAI's has batch norm whatever the network's norm is: one micro-batch sample would then depend on the
    others. Here the network's norm stands where theirs does, before the activation. The score has none: over a single
    channel it would force as many gates shut as open.

    Args:
        style: norm and the like.
        skip_channels: channels of the skip.
        gating_channels: channels of the coarser map.
        stride: how much coarser that is, per axis.
    """

    def __init__(self, style: Style, skip_channels: int, gating_channels: int, stride: Sequence[int]) -> None:
        super().__init__()
        bare = {"conv_only": True, "padding": 0}
        self.from_skip = Convolution(
            style.dims, skip_channels, skip_channels, strides=stride, kernel_size=stride, bias=False, **bare
        )
        self.from_gating = Convolution(style.dims, gating_channels, skip_channels, kernel_size=1, bias=False, **bare)
        self.norm = get_norm_layer(style.norm, style.dims, skip_channels)
        self.score = Convolution(style.dims, skip_channels, 1, kernel_size=1, **bare)
        nn.init.constant_(self.score.conv.bias, OPEN_GATE)
        self.mode = "trilinear" if style.dims == 3 else "bilinear"

    def weights(self, skip: Tensor, gating: Tensor) -> Tensor:
        """(B, 1, ...) in [0, 1], at the skip's resolution."""
        joint = F.relu(self.norm(self.from_skip(skip) + self.from_gating(gating)))
        coarse = torch.sigmoid(self.score(joint))
        return F.interpolate(coarse, size=skip.shape[2:], mode=self.mode, align_corners=False)

    def forward(self, skip: Tensor, gating: Tensor) -> Tensor:
        """The skip (B, skip_channels, ...), gated by the map (B, gating_channels, ... / stride)."""
        return skip * self.weights(skip, gating)
