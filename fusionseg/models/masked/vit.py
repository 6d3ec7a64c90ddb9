"""Masked pre-training of the vision transformer (ViT) of UNETR."""

from __future__ import annotations

from math import prod

import torch
from monai.networks.nets.vit import ViT
from torch import Tensor, nn

from fusionseg.config.pretraining import PretrainConfig
from fusionseg.config.section import Triple
from fusionseg.models.masked.decoder import TokenDecoder, zero_initialise_
from fusionseg.models.masked.masking import (
    blocks_to_voxels,
    hidden_fractions,
    insert_visible,
    join_blocks,
    split_blocks,
    visible_block_indices,
)
from fusionseg.models.masked.network import MaskedNetwork


class MaskedViT(MaskedNetwork):
    """ViT with cubic tokens, and a transformer decoder; see `build_masked`.

    With `mae` (He et al., 2022, section 3) only visible blocks are embedded. As in UNETR there is no class token.

    Args:
        encoder: MONAI's ViT for volumes of these channels and this size.
        pretrain: `pretrain` section.
        width: channels of the encoder's tokens.
        token: edge of a token in voxels.
        channels: channels of the volumes.
        patch: X, Y, Z of the volumes.
    """

    vit: ViT

    def __init__(
        self, encoder: ViT, pretrain: PretrainConfig, *, width: int, token: int, channels: int, patch: Triple
    ) -> None:
        super().__init__(pretrain)
        self.token = token
        self.grid = tuple(size // token for size in patch)
        tokens_per_block = (pretrain.block // token) ** 3
        self.num_visible = prod(self.grid) - tokens_per_block * pretrain.num_hidden(patch)
        self.channels = channels
        self.vit = encoder
        decoder = pretrain.decoder
        self.decoder = TokenDecoder(
            width,
            self.grid,
            channels * token**3,
            width=decoder.width,
            depth=decoder.depth,
            heads=decoder.heads,
        )
        if self.has_prior:
            zero_initialise_(self.decoder.out)
        if self.method == "token":
            self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))

    def encode(self, image: Tensor, hidden: Tensor) -> Tensor:
        """Return the last tokens of the encoder (B, T, width); with `mae` only those of the visible blocks."""
        embedding = self.vit.patch_embedding
        positions = embedding.position_embeddings
        if self.method == "mae":
            batch, indices = len(image), visible_block_indices(self._hidden_tokens(hidden), self.num_visible)
            blocks = split_blocks(image, self.grid).index_select(0, indices)
            tokens = embedding.patch_embeddings(blocks).flatten(1).unflatten(0, (batch, -1))
            positions = positions.expand(batch, -1, -1).flatten(0, 1).index_select(0, indices).view_as(tokens)
        else:
            if self.method == "blackout":
                image = image.masked_fill(blocks_to_voxels(hidden, image.shape[2:]), 0)
            tokens = embedding.patch_embeddings(image).flatten(2).mT
            if self.method == "token":
                hidden_tokens = self._hidden_tokens(hidden).flatten(1).unsqueeze(2)
                tokens = torch.where(hidden_tokens, self.mask_token.to(tokens.dtype), tokens)
        tokens = embedding.dropout(tokens + positions)
        for block in self.vit.blocks:
            tokens = block(tokens)
        last: Tensor = self.vit.norm(tokens)
        return last

    def decode(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Reconstruct the volume (B, C, X, Y, Z) from the output of `encode`."""
        batch = len(tokens)
        tokens = self.decoder.project_in(tokens)
        if self.method == "mae":
            indices = visible_block_indices(self._hidden_tokens(hidden), self.num_visible)
            tokens = insert_visible(tokens.flatten(0, 1), indices, batch * prod(self.grid), self.decoder.hidden_token)
            tokens = tokens.unflatten(0, (batch, -1))
        else:
            fractions = hidden_fractions(hidden, self.grid).flatten(2).mT
            tokens = tokens + (fractions * self.decoder.hidden_token).to(tokens.dtype)
        blocks = self.decoder.merge(tokens).reshape(-1, self.channels, *[self.token] * 3)
        return join_blocks(blocks, self.grid)

    def _hidden_tokens(self, hidden: Tensor) -> Tensor:
        """Expand hidden blocks to hidden tokens (B, tx, ty, tz)."""
        return blocks_to_voxels(hidden, self.grid).squeeze(1)
