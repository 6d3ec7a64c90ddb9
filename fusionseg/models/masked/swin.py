"""Masked pre-training of the encoder of Swin UNETR.

With `mae`, each visible block is a small volume of its own and is moved into the batch dimension. The block has at
least 32 voxels along each axis, the size of a token of the last stage, so that it is visible or hidden as a whole at
all stages. This is the masking of Hiera (Ryali et al., 2023, section 3, arXiv:2306.00989), which has attention within
blocks ("mask units") in its first stages. Windows tile a block: where the windows of the network do not, smaller ones
are used. Shifted windows stay inside the block, as at the border of a volume.

GreenMIM (Huang et al., 2022, arXiv:2205.13515) also encodes only the visible patches with a Swin transformer, but has
to group the visible patches of partly filled windows. That is not necessary here: no window is partly filled.

In contrast to both, blocks exchange no information at any stage of the encoder. Only the decoder combines them, and
later the fine-tuned network, whose windows cross the former borders of blocks.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from fusionseg.config.pretraining import PretrainConfig
from fusionseg.config.section import Triple
from fusionseg.models.masked.decoder import PyramidDecoder, zero_initialise_
from fusionseg.models.masked.masking import (
    add_token,
    blocks_to_voxels,
    insert_visible,
    join_blocks,
    split_blocks,
    visible_block_indices,
)
from fusionseg.models.masked.network import MaskedNetwork
from fusionseg.models.swin.attention import WindowAttention
from fusionseg.models.swin.encoder import SwinBlock, SwinEncoder, SwinStage


class MaskedSwin(MaskedNetwork):
    """Swin encoder, and a decoder that reconstructs the volume from its five maps; see `build_masked`.

    Args:
        encoder: Swin encoder; its maps have feature_size, 2 feature_size, ... channels. With `mae` its windows are
            reduced to sizes that tile a block, in place.
        pretrain: `pretrain` section.
        feature_size: channels of the first map.
        channels: channels of the volumes.
        patch: X, Y, Z of the volumes.
    """

    def __init__(
        self, encoder: SwinEncoder, pretrain: PretrainConfig, *, feature_size: int, channels: int, patch: Triple
    ) -> None:
        super().__init__(pretrain)
        self.grid = pretrain.grid(patch)
        self.num_visible = prod(self.grid) - pretrain.num_hidden(patch)
        if self.method == "mae":
            limit_windows_to_blocks(encoder, pretrain.block)
        self.swinViT = encoder
        self.decoder = PyramidDecoder(
            [feature_size * 2**scale for scale in range(5)],
            channels,
            width=pretrain.decoder.width,
            depth=pretrain.decoder.depth,
        )
        if self.has_prior:
            zero_initialise_(self.decoder.out)
        if self.method == "token":
            self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(feature_size), std=0.02))

    def encode(self, image: Tensor, hidden: Tensor) -> list[Tensor]:
        """Return the five maps of the encoder; with `mae` those of the visible blocks, in the batch dimension."""
        if self.method == "mae":
            indices = visible_block_indices(hidden, self.num_visible)
            image = split_blocks(image, self.grid).index_select(0, indices)
        elif self.method == "blackout":
            image = image.masked_fill(blocks_to_voxels(hidden, image.shape[2:]), 0)
        embedded = self.swinViT.patch_embed(image)
        if self.method == "token":
            token = self.mask_token.to(embedded.dtype).view(1, -1, 1, 1, 1)
            embedded = torch.where(blocks_to_voxels(hidden, embedded.shape[2:]), token, embedded)
        states: list[Tensor] = self.swinViT.stages(embedded, normalize=True)
        return states

    def decode(self, states: list[Tensor], hidden: Tensor) -> Tensor:
        """Reconstruct the volume (B, C, X, Y, Z) from the output of `encode`."""
        maps = self.decoder.project(states)
        tokens = self.decoder.hidden_token.split(self.decoder.widths)
        if self.method == "mae":  # after the projection, because the decoder's maps have fewer channels
            indices = visible_block_indices(hidden, self.num_visible)
            maps = [
                join_blocks(insert_visible(blocks, indices, hidden.numel(), token), self.grid)
                for blocks, token in zip(maps, tokens, strict=True)
            ]
        else:  # without the token, the decoder could not distinguish hidden voxels from air
            maps = [add_token(x, hidden, token) for x, token in zip(maps, tokens, strict=True)]
        return self.decoder.merge(maps)


class BlockAttention(WindowAttention):
    """Window attention whose windows may be smaller than the bias table, with the parameters of `WindowAttention`.

    The bias of two tokens is that of their offset, for windows of any size. So the biases that are learnt in small
    windows are valid in the windows of the fine-tuned network. `WindowAttention`, like MONAI, uses the first rows and
    columns of its index for a smaller window, and these belong to other offsets.
    """

    def position_rows(self, length: int) -> Tensor:
        """Return the rows of the bias table (n, n) for the pairs of tokens of cubic windows of n tokens.

        Args:
            length: n.
        """
        full, edge = (round(tokens ** (1 / 3)) for tokens in (len(self.relative_position_index), length))
        index = self.relative_position_index.view([full] * 6)
        for axis in range(6):
            index = index.narrow(axis, 0, edge)
        return index.reshape(length, length)


def limit_windows_to_blocks(encoder: SwinEncoder, block: int) -> None:
    """Reduce the windows of each stage to the largest size that tiles a block, in place.

    Example: a block of 16 tokens needs 27 windows of 7, which would be more than half padding; 64 windows of 4 fit.

    Args:
        encoder: the Swin encoder.
        block: edge of a block in voxels.
    """
    for stage in swin_stages(encoder):
        block //= 2  # from here on in tokens of the stage
        stage.window_size = max(size for size in range(1, stage.window_size + 1) if block % size == 0)
        for part in stage.blocks:
            assert isinstance(part, SwinBlock)
            attention = part.attn
            window = round(len(attention.relative_position_index) ** (1 / 3))
            part.attn = BlockAttention(attention.proj.in_features, attention.num_heads, window)
            part.attn.load_state_dict(attention.state_dict())


def swin_stages(encoder: SwinEncoder) -> list[SwinStage]:
    """Return the stages of an encoder, highest resolution first."""
    return [module for module in encoder.modules() if isinstance(module, SwinStage)]
