"""A context bridge over skip connections: attention over the reduced maps of several stages at once.

Source: X. Huang, Z. Deng, D. Li, X. Yuan, "MISSFormer" (2021, arXiv:2109.07162), "Enhanced Transformer Context
Bridge".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks.blocks.selfattention import SABlock
from torch import Tensor, nn
from torch.nn import functional as F

from fusionseg.config.networks.swin import BridgeConfig
from fusionseg.models.upsampling import upsample

Grid = tuple[int, ...]
"""Voxels of a map in each axis."""


class ContextBridge(nn.Module):
    """Adds to the skips of the chosen stages what all of them together say.

    Each map is reduced to a small grid and brought to a common width; the voxels of all of them are the tokens of one
    sequence, `depth` transformer blocks run over it, and each stage's tokens go back to its width and resolution and
    are added to its skip.

    As in MISSFormer: the maps of all scales form one sequence; the blocks are attention and the enhanced mix-FFN (a
    depthwise convolution over each map, added to what goes into it and normalised); there is no positional encoding,
    as the convolutions see neighbours and borders, so any patch size will do. What differs:

    * The maps are reduced before the blocks, by convolutions in steps of two. There only keys and values are, in every
      attention, by one convolution of kernel and stride R, and the queries stay at full resolution: in three
      dimensions both grow with R**3.
    * Every stage is projected to `width`. There the base width is that of the first stage, and a voxel of a wider
      stage is cut into several tokens of it.
    * The two linear layers of an FFN are shared by the stages, which keep convolutions of their own. There each stage
      has an FFN of its own width.
    * The result is added to the skip, and the last projection starts at zero: a network with a bridge starts as the
      one without. There it replaces the skip.

    Args:
        config: the `bridge` section.
        skip_channels: channels of the skips of stages 1, 2, ...
    """

    def __init__(self, config: BridgeConfig, skip_channels: Sequence[int]) -> None:
        super().__init__()
        self.halvings = {stage: max(0, config.grid - stage) for stage in config.stages}
        self.reduce = nn.ModuleDict()
        self.expand = nn.ModuleDict()
        for stage, halvings in self.halvings.items():
            channels = skip_channels[stage - 1]
            # The bias is the stage's embedding: it is the same at all of its tokens.
            self.reduce[f"stage{stage}"] = _reduction(channels, config.width, halvings)
            self.expand[f"stage{stage}"] = _zeros(nn.Conv3d(config.width, channels, 1))
        self.norm_in = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(
            _BridgeBlock(config.width, config.heads, config.mlp_ratio, num_maps=len(config.stages))
            for _ in range(config.depth)
        )
        self.norm_out = nn.LayerNorm(config.width)

    def forward(self, skips: Sequence[Tensor]) -> list[Tensor]:
        """The skips with those of the bridge's stages changed; the others are the same tensors.

        Args:
            skips: of stages s = 1, 2, ...: (B, C_s, X, Y, Z), the last three divided by 2**(s - 1) and multiples of 2
                down to the stage `grid`.
        """
        maps = [self.reduce[f"stage{stage}"](skips[stage - 1]) for stage in self.halvings]
        grids = [tuple(x.shape[2:]) for x in maps]
        tokens_BNW = self.norm_in(_to_tokens(maps))
        for block in self.blocks:
            tokens_BNW = block(tokens_BNW, grids)
        out = list(skips)
        for (stage, halvings), x in zip(self.halvings.items(), _to_maps(self.norm_out(tokens_BNW), grids), strict=True):
            out[stage - 1] = skips[stage - 1] + upsample(self.expand[f"stage{stage}"](x), 2**halvings)
        return out


class _BridgeBlock(nn.Module):
    """Attention over all tokens, and an enhanced mix-FFN with a depthwise convolution for each map."""

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
        changed: Tensor = self.narrow(F.gelu(self.norm3(hidden + _to_tokens(local))))
        return tokens_BNW + changed


def _reduction(in_channels: int, width: int, halvings: int) -> nn.Module:
    """To `width` channels and 1 / 2**halvings of the size. One convolution would need 8**halvings times the weights."""
    if not halvings:
        return nn.Conv3d(in_channels, width, 1)
    steps = [in_channels, *[width] * halvings]
    return nn.Sequential(*(nn.Conv3d(n, width, 2, stride=2) for n in steps[:-1]))


def _zeros(layer: nn.Conv3d) -> nn.Conv3d:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _to_tokens(maps: Sequence[Tensor]) -> Tensor:
    """(B, W, X, Y, Z) of any sizes to one sequence (B, N, W)."""
    return torch.cat([x.flatten(2).mT for x in maps], dim=1)


def _to_maps(tokens_BNW: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
    """The inverse of `_to_tokens`."""
    parts = tokens_BNW.split([math.prod(grid) for grid in grids], dim=1)
    return [part.mT.unflatten(2, grid) for part, grid in zip(parts, grids, strict=True)]
