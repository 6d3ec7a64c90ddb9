"""Context bridge between skip connections: attention over the reduced maps of several stages.

Source: X. Huang, Z. Deng, D. Li, X. Yuan, "MISSFormer" (2021, section "Enhanced Transformer Context Bridge",
arXiv:2109.07162).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks.blocks.selfattention import SABlock
from torch import Tensor, nn
from torch.nn import functional as F

from fusionseg.config.section import Triple
from fusionseg.models.fusion.settings import BridgeConfig
from fusionseg.models.fusion.upsampling import total_stride, upsample

Grid = tuple[int, ...]
"""Voxels of a map along each axis."""


class ContextBridge(nn.Module):
    """Transformer over the skips of several stages; its output is added to these skips.

    The map of each stage is reduced to a small grid and projected to a common width. The voxels of all maps form one
    sequence of tokens for `depth` transformer blocks. The tokens of each stage are then projected back to the stage's
    width, up-sampled to its resolution and added to its skip.

    As in MISSFormer, the maps of all scales form one sequence, and a block consists of attention and the enhanced
    mix-FFN: a depthwise convolution over each map, with a residual connection and a norm. There is no positional
    encoding: the convolutions give the position relative to neighbours and borders, so that any patch size can be used.
    These points differ from MISSFormer:

    * The maps are reduced before the blocks, by convolutions of stride 2. MISSFormer reduces only keys and values, in
      each attention, with one convolution of kernel R and stride R, and keeps the queries at full resolution. In three
      dimensions the weights of such a convolution and the number of queries grow with R**3.
    * All stages are projected to `width`. MISSFormer uses the width of the first stage, and splits a voxel of a wider
      stage into several tokens.
    * The stages share the two linear layers of the FFN; each stage has its own depthwise convolution. In MISSFormer
      each stage has its own FFN.
    * The output is added to the skip, and its last projection is initialised with zeros: a new network with a bridge
      has the output of the network without it. In MISSFormer the output replaces the skip.

    Args:
        config: the `bridge` section.
        skip_channels: channels of the skips of stages 1, 2, ...
        strides: down-sampling factors from stages 1, 2, ... to the next one along each axis.
    """

    def __init__(self, config: BridgeConfig, skip_channels: Sequence[int], strides: Sequence[Triple]) -> None:
        super().__init__()
        # Stage -> strides from it to the stage of the grid; a stage below the grid has none.
        self.strides = {stage: tuple(strides[stage - 1 : config.grid - 1]) for stage in config.stages}
        self.reduce = nn.ModuleDict()
        self.expand = nn.ModuleDict()
        for stage, steps in self.strides.items():
            channels = skip_channels[stage - 1]
            # The bias of the reduction serves as the embedding of the stage: it is the same for all tokens of a stage.
            self.reduce[f"stage{stage}"] = _reduction(channels, config.width, steps)
            self.expand[f"stage{stage}"] = _zero_initialised(nn.Conv3d(config.width, channels, 1))
        self.norm_in = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(
            _BridgeBlock(config.width, config.heads, config.mlp_ratio, num_maps=len(config.stages))
            for _ in range(config.depth)
        )
        self.norm_out = nn.LayerNorm(config.width)

    def forward(self, skips: Sequence[Tensor]) -> list[Tensor]:
        """Return the skips, with the bridge's output added to those of its stages; the others are the same tensors.

        Args:
            skips: skips of stages s = 1, 2, ..., (B, C_s, X_s, Y_s, Z_s); the sizes can be divided exactly by the
                strides down to the stage `grid`.
        """
        maps = [self.reduce[f"stage{stage}"](skips[stage - 1]) for stage in self.strides]
        grids = [tuple(x.shape[2:]) for x in maps]
        tokens_BNW = self.norm_in(_to_tokens(maps))
        for block in self.blocks:
            tokens_BNW = block(tokens_BNW, grids)
        out = list(skips)
        for (stage, steps), x in zip(self.strides.items(), _to_maps(self.norm_out(tokens_BNW), grids), strict=True):
            out[stage - 1] = skips[stage - 1] + upsample(self.expand[f"stage{stage}"](x), total_stride(steps))
        return out


class _BridgeBlock(nn.Module):
    """Transformer block: attention over all tokens, and an enhanced mix-FFN with one depthwise convolution per map."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, num_maps: int) -> None:
        super().__init__()
        hidden = mlp_ratio * width
        self.norm1 = nn.LayerNorm(width)
        self.attention = SABlock(width, heads, qkv_bias=True, use_flash_attention=True)
        self.norm2 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, hidden)
        self.local = nn.ModuleList(nn.Conv3d(hidden, hidden, 3, padding=1, groups=hidden) for _ in range(num_maps))
        self.norm3 = nn.LayerNorm(hidden)
        self.narrow = nn.Linear(hidden, width)

    def forward(self, tokens_BNW: Tensor, grids: Sequence[Grid]) -> Tensor:
        tokens_BNW = tokens_BNW + self.attention(self.norm1(tokens_BNW))
        hidden = self.widen(self.norm2(tokens_BNW))
        local = [convolve(x) for convolve, x in zip(self.local, _to_maps(hidden, grids), strict=True)]
        update: Tensor = self.narrow(F.gelu(self.norm3(hidden + _to_tokens(local))))
        return tokens_BNW + update


def _reduction(in_channels: int, width: int, strides: Sequence[Triple]) -> nn.Module:
    """Build a module that maps (B, in_channels, X, Y, Z) to `width` channels and divides the size by all strides.

    Several convolutions of stride 2 have fewer weights than a single one with the product of the strides.
    """
    if not strides:
        return nn.Conv3d(in_channels, width, 1)
    channels = [in_channels, *[width] * len(strides)]
    return nn.Sequential(*(nn.Conv3d(n, width, step, stride=step) for n, step in zip(channels, strides, strict=False)))


def _zero_initialised(layer: nn.Conv3d) -> nn.Conv3d:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _to_tokens(maps: Sequence[Tensor]) -> Tensor:
    """Concatenate the voxels of maps (B, W, X, Y, Z) of different sizes to one sequence (B, N, W)."""
    return torch.cat([x.flatten(2).mT for x in maps], dim=1)


def _to_maps(tokens_BNW: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
    """Split a sequence (B, N, W) into maps: the inverse of `_to_tokens`."""
    parts = tokens_BNW.split([math.prod(grid) for grid in grids], dim=1)
    return [part.mT.unflatten(2, grid) for part, grid in zip(parts, grids, strict=True)]
