"""Light decoders: from what an encoder made of the visible voxels to all voxels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from monai.networks.blocks.pos_embed_utils import build_sincos_position_embedding
from monai.networks.blocks.segresnet_block import ResBlock
from monai.networks.blocks.transformerblock import TransformerBlock
from monai.networks.utils import pixelshuffle
from torch import Tensor, nn

from fusionseg.models.masked.hidden_voxels import blocks_to_voxels, fill_linear

_GROUP = 8  # channels of a group of the group norm


class PyramidDecoder(nn.Module):
    """From the five maps of a Swin encoder, 1/2 to 1/32 of the resolution, to the volume.

    From the coarsest map up: residual blocks, doubling, plus the next finer map. The coarse scales carry what lies
    far away into a hidden block. `width` channels from 1/8 on, half of it at 1/4, a quarter at 1/2, where `depth`
    blocks would cost more than all others together: there is one.

    Group norm, not instance norm: a patch may be a single voxel at 1/32.

    Args:
        in_channels: of the encoder's maps, from 1/2 to 1/32.
        out_channels: of the volume.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, *, width: int, depth: int) -> None:
        super().__init__()
        widths = [max(_GROUP, width // shrink // _GROUP * _GROUP) for shrink in (4, 2, 1, 1, 1)]
        self.widths = widths
        self.project_in = nn.ModuleList(
            nn.Conv3d(given, own, kernel_size=1) for given, own in zip(in_channels, widths, strict=True)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(*(_residual(own) for _ in range(depth if scale else 1))) for scale, own in enumerate(widths)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(coarse, fine, kernel_size=2, stride=2) for fine, coarse in pairwise(widths)
        )
        self.out = nn.Conv3d(widths[0], 8 * out_channels, kernel_size=3, padding=1)
        # What is said of a hidden place in each of the maps, end to end
        self.hidden_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(sum(widths)), std=0.02))

    def project(self, states: Sequence[Tensor]) -> list[Tensor]:
        """The encoder's maps at the decoder's widths, voxel by voxel."""
        return [layer(state) for layer, state in zip(self.project_in, states, strict=True)]

    def merge(self, maps: Sequence[Tensor]) -> Tensor:
        """The volume (B, C, X, Y, Z) of the projected maps."""
        x = self.blocks[-1](maps[-1])
        for scale in range(len(maps) - 2, -1, -1):
            x = self.blocks[scale](self.up[scale](x) + maps[scale])
        volume: Tensor = pixelshuffle(self.out(x), spatial_dims=3, scale_factor=2)
        return volume


class TokenDecoder(nn.Module):
    """From the tokens of a ViT to the voxels of each token: a smaller transformer, and a linear layer (He et al.,
    2022, section 3).

    Args:
        in_channels: width of the encoder's tokens.
        grid: tokens along each axis.
        out_values: voxels of a token times channels.
    """

    def __init__(
        self, in_channels: int, grid: Sequence[int], out_values: int, *, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.project_in = nn.Linear(in_channels, width)
        self.blocks = nn.Sequential(*(_transformer(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, out_values)
        self.hidden_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        self.positions: Tensor
        self.register_buffer("positions", sincos_positions(grid, width), persistent=False)

    def merge(self, tokens: Tensor) -> Tensor:
        """Values (B, T, out_values) of projected tokens (B, T, width), all of them."""
        values: Tensor = self.out(self.norm(self.blocks(tokens + self.positions)))
        return values


def linear_prior(image: Tensor, hidden: Tensor) -> Tensor:
    """The hidden voxels of volumes (B, C, X, Y, Z), interpolated; 0 at the visible ones."""
    voxels = blocks_to_voxels(hidden, image.shape[2:])
    with torch.no_grad():
        shown = image.masked_fill(voxels, 0)  # not even 0 times what is hidden
        return fill_linear(shown, voxels).masked_fill(~voxels, 0)


def start_at_prior_(out: nn.Conv3d | nn.Linear) -> None:
    """Have a decoder that adds to a prior begin by adding nothing."""
    nn.init.zeros_(out.weight)
    assert out.bias is not None
    nn.init.zeros_(out.bias)


def sincos_positions(grid: Sequence[int], width: int) -> Tensor:
    """Fixed sines and cosines of the three coordinates, (1, T, width); channels beyond a multiple of 6 are 0."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.meshgrid")  # MONAI names no indexing and means the default
        known = build_sincos_position_embedding(list(grid), width // 6 * 6, spatial_dims=3).data
    return torch.cat([known, known.new_zeros(1, prod(grid), width % 6)], dim=2)


def _residual(channels: int) -> ResBlock:
    norm = ("group", {"num_groups": channels // _GROUP})
    return ResBlock(spatial_dims=3, in_channels=channels, norm=norm)


def _transformer(width: int, heads: int) -> TransformerBlock:
    block = TransformerBlock(width, 4 * width, heads, use_flash_attention=True)
    block.norm_cross_attn = nn.Identity()  # MONAI makes it, and no gradient would reach it
    return block
