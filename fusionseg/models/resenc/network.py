"""nnU-Net's residual-encoder U-Net, with plain or fused skip connections.

Source: F. Isensee et al., "nnU-Net Revisited" (2024, arXiv:2404.09556).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fusionseg.config.section import Triple
from fusionseg.models.fusion.fused_skips import FusedSkips
from fusionseg.models.fusion.settings import FusionSettings
from fusionseg.models.resenc.blocks import ConvNorm, ConvStack, ResidualBlock, Stage, initialise_


class ResEncUNet(nn.Module):
    """Residual encoder, decoder of plain convolutions, plain or fused skip connections.

    The state dict has the names of nnU-Net's ResidualEncoderUNet, without the names by which nnU-Net lists a tensor a
    second time, and without the biases of convolutions before a norm, which have no effect. With `fusion` it has
    `fusion.*` in addition. A level is a stage of the fusion: stage 1 is the first level, at full resolution, and the
    lowest level is the bottleneck. The plain skip of a stage is the map of the encoder.

    Args:
        in_channels: channels of the volumes.
        out_channels: number of classes, background included.
        channels: channels of each level, highest resolution first.
        blocks: residual blocks of each level of the encoder.
        kernels: kernel of each level along each axis.
        strides: down-sampling factors between the levels along each axis; one fewer than channels.
        decoder_convs: convolutions of each level of the decoder.
        deep_supervision: in training, heads at the lower resolutions of the decoder too, except the lowest one. nnU-Net
            has that head with the weight 0.
        fusion: settings of the fused skips; None for plain skips.
        use_checkpoint: compute the residual blocks, the levels of the decoder and the fusion again in the backward
            pass.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: Sequence[int],
        blocks: Sequence[int],
        kernels: Sequence[Triple],
        strides: Sequence[Triple],
        decoder_convs: int = 1,
        deep_supervision: bool = True,
        fusion: FusionSettings | None = None,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.encoder = ResidualEncoder(in_channels, channels, blocks, kernels, strides, use_checkpoint=use_checkpoint)
        self.fusion: FusedSkips | None = None
        if fusion is not None:
            self.fusion = FusedSkips(fusion, channels, channels, strides, use_checkpoint=use_checkpoint)
        self.decoder = Decoder(out_channels, channels, kernels, strides, decoder_convs, deep_supervision)
        self.encoder.apply(initialise_)
        self.decoder.apply(initialise_)

    def forward(self, x_BCXYZ: Tensor) -> Tensor | list[Tensor]:
        """Map volumes (B, C, X, Y, Z) to logits (B, K, X, Y, Z).

        In training mode with deep supervision the result is a list of logits, full resolution first.
        """
        skips: list[Tensor] = self.encoder(x_BCXYZ)
        if self.fusion is not None:
            skips = self.fusion(skips, skips)
        logits: list[Tensor] = self.decoder(skips, use_checkpoint=self.use_checkpoint)
        return logits if self.training and len(logits) > 1 else logits[0]


class ResidualEncoder(nn.Module):
    """A convolution, then levels of residual blocks; the first block of a level has its stride."""

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        blocks: Sequence[int],
        kernels: Sequence[Triple],
        strides: Sequence[Triple],
        *,
        use_checkpoint: bool,
    ) -> None:
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.stem = ConvStack([ConvNorm(in_channels, channels[0], kernels[0])])
        self.stages = nn.ModuleList()
        previous = channels[0]
        for width, count, kernel, stride in zip(channels, blocks, kernels, [(1, 1, 1), *strides], strict=True):
            first = ResidualBlock(previous, width, kernel, stride)
            self.stages.append(Stage([first, *(ResidualBlock(width, width, kernel) for _ in range(count - 1))]))
            previous = width

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps of all levels of volumes (B, C, X, Y, Z), full resolution first."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            blocks: Any = stage.blocks
            for block in blocks:
                x = _run(block, x, use_checkpoint=self.use_checkpoint and self.training)
            maps.append(x)
        return maps


class Decoder(nn.Module):
    """Transposed convolutions, plain convolutions and heads. As in nnU-Net, index 0 of each is the lowest level."""

    def __init__(
        self,
        out_channels: int,
        channels: Sequence[int],
        kernels: Sequence[Triple],
        strides: Sequence[Triple],
        convs: int,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.transpconvs = nn.ModuleList()
        self.stages = nn.ModuleList()
        self.seg_layers = nn.ModuleDict()
        last = len(strides) - 1
        for index, level in enumerate(reversed(range(len(strides)))):
            width, kernel, stride = channels[level], kernels[level], strides[level]
            self.transpconvs.append(nn.ConvTranspose3d(channels[level + 1], width, stride, stride))
            self.stages.append(ConvStack([ConvNorm(width if i else 2 * width, width, kernel) for i in range(convs)]))
            if index == last or (deep_supervision and index > 0):
                self.seg_layers[str(index)] = nn.Conv3d(width, out_channels, 1)

    def forward(self, skips: Sequence[Tensor], *, use_checkpoint: bool) -> list[Tensor]:
        """Return the logits of the heads, full resolution first; in evaluation mode only those of full resolution.

        Args:
            skips: skips of all levels, full resolution first; the last one is the bottleneck.
            use_checkpoint: compute each level again in the backward pass.
        """
        x = skips[-1]
        logits: list[Tensor] = []
        last = len(self.stages) - 1
        for index, skip in enumerate(reversed(skips[:-1])):
            x = _run(self._level, index, x, skip, use_checkpoint=use_checkpoint and self.training)
            if index == last or (self.training and str(index) in self.seg_layers):
                logits.append(self.seg_layers[str(index)](x))
        return logits[::-1]

    def _level(self, index: int, low: Tensor, skip: Tensor) -> Tensor:
        x: Tensor = self.stages[index](torch.cat([self.transpconvs[index](low), skip], dim=1))
        return x


def _run(function: Callable[..., Tensor], *inputs: Any, use_checkpoint: bool) -> Tensor:
    # There is no dropout, so that no random state has to be restored.
    if use_checkpoint:
        out: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
        return out
    return function(*inputs)
