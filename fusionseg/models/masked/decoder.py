"""Light decoders of masked pre-training, from the output of an encoder to all voxels."""

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

from fusionseg.models.masked.fills import fill_linear
from fusionseg.models.masked.masking import blocks_to_voxels

_GROUP = 8  # channels in a group of the group norm


class PyramidDecoder(nn.Module):
    """Decoder of the five maps of a Swin encoder, from 1/32 to 1/2 of the resolution, to the volume.

    At each scale, from the coarsest on: residual blocks, up-sampling by 2, addition of the next finer map. The coarse
    scales bring information from far away into a hidden block.

    The maps have `width` channels from 1/32 to 1/8, half of it at 1/4 and a quarter at 1/2. At 1/2 there is only one
    residual block: `depth` blocks would cost more than those of all other scales together.

    The norm is group norm. Instance norm is not possible: a patch may have a single voxel at 1/32.

    Args:
        in_channels: channels of the encoder's maps, from 1/2 to 1/32.
        out_channels: channels of the volume.
        width: channels of the maps at 1/32, 1/16 and 1/8.
        depth: residual blocks of each scale below 1/2.
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
        # Tokens of hidden places for all maps, concatenated
        self.hidden_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(sum(widths)), std=0.02))

    def project(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Project the encoder's maps to the widths of the decoder, by 1 x 1 x 1 convolutions."""
        return [layer(state) for layer, state in zip(self.project_in, states, strict=True)]

    def merge(self, maps: Sequence[Tensor]) -> Tensor:
        """Compute the volume (B, C, X, Y, Z) from the projected maps."""
        x = self.blocks[-1](maps[-1])
        for scale in range(len(maps) - 2, -1, -1):
            x = self.blocks[scale](self.up[scale](x) + maps[scale])
        volume: Tensor = pixelshuffle(self.out(x), spatial_dims=3, scale_factor=2)
        return volume


class TokenDecoder(nn.Module):
    """Decoder of the tokens of a ViT: a small transformer and a linear layer (He et al., 2022, section 3).

    Args:
        in_channels: channels of the encoder's tokens.
        grid: tokens along each axis.
        out_values: voxels of a token times channels of the volume.
        width: channels of the decoder's tokens.
        depth: transformer blocks.
        heads: attention heads; they divide `width`.
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
        """Compute the voxels (B, T, out_values) of all tokens from the projected tokens (B, T, width)."""
        values: Tensor = self.out(self.norm(self.blocks(tokens + self.positions)))
        return values


def linear_prior(image: Tensor, hidden: Tensor) -> Tensor:
    """Interpolate the hidden voxels of a volume linearly; visible voxels are 0 in the result.

    Args:
        image: (B, C, X, Y, Z).
        hidden: hidden blocks (B, gx, gy, gz), True for hidden.
    """
    voxels = blocks_to_voxels(hidden, image.shape[2:])
    with torch.no_grad():
        visible = image.masked_fill(voxels, 0)  # a nan or inf in a hidden voxel must not reach the result
        return fill_linear(visible, voxels).masked_fill(~voxels, 0)


def zero_initialise_(out: nn.Conv3d | nn.Linear) -> None:
    """Set the weights of a decoder's last layer to 0, so that the first reconstruction is the prior."""
    nn.init.zeros_(out.weight)
    assert out.bias is not None
    nn.init.zeros_(out.bias)


def sincos_positions(grid: Sequence[int], width: int) -> Tensor:
    """Compute fixed sine-cosine position embeddings, (1, T, width).

    Args:
        grid: tokens along each axis, T in total.
        width: channels; those beyond the largest multiple of 6 are 0.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.meshgrid")  # MONAI relies on the default of `indexing`
        embedding = build_sincos_position_embedding(list(grid), width // 6 * 6, spatial_dims=3).data
    return torch.cat([embedding, embedding.new_zeros(1, prod(grid), width % 6)], dim=2)


def _residual(channels: int) -> ResBlock:
    norm = ("group", {"num_groups": channels // _GROUP})
    return ResBlock(spatial_dims=3, in_channels=channels, norm=norm)


def _transformer(width: int, heads: int) -> TransformerBlock:
    block = TransformerBlock(width, 4 * width, heads, use_flash_attention=True)
    # MONAI's block has this norm, but does not use it. DDP would wait for its gradient.
    block.norm_cross_attn = nn.Identity()
    return block
