"""Masked reconstruction with the vision transformer of UNETR."""

from __future__ import annotations

from math import prod

import torch
from monai.networks.nets.vit import ViT
from torch import Tensor, nn

from fusionseg.config.networks import UNETRConfig
from fusionseg.config.networks.from_monai import UNETR_TOKEN
from fusionseg.config.pretraining import PretrainConfig
from fusionseg.models.masked.block_grid import fill_rows, hidden_shares, join_units, split_units, visible_rows
from fusionseg.models.masked.decoder import TokenDecoder, linear_prior, start_at_prior_
from fusionseg.models.masked.hidden_voxels import blocks_to_voxels
from fusionseg.models.monai_networks import build_from_monai

Triple = tuple[int, int, int]


class MaskedViT(nn.Module):
    """A ViT over tokens of 16^3 voxels and the transformer that reconstructs from its last tokens; see `build_masked`.

    With `mae` (He et al., 2022) the hidden voxels do not even reach the patch embedding. There is no class token, as
    there is none in UNETR.

    Args:
        encoder: MONAI's ViT, of these channels and this patch.
        width: of its tokens.
        channels: of the volumes.
        patch: size of the volumes.
    """

    vit: ViT

    def __init__(self, encoder: ViT, pretrain: PretrainConfig, *, width: int, channels: int, patch: Triple) -> None:
        super().__init__()
        self.method = pretrain.method
        self.has_prior = pretrain.prior == "linear"
        self.grid = tuple(size // UNETR_TOKEN for size in patch)
        per_block = (pretrain.block // UNETR_TOKEN) ** 3  # tokens
        self.num_visible = prod(self.grid) - per_block * pretrain.num_hidden(patch)
        self.channels = channels
        self.vit = encoder
        decoder = pretrain.decoder
        self.decoder = TokenDecoder(
            width,
            self.grid,
            channels * UNETR_TOKEN**3,
            width=decoder.width,
            depth=decoder.depth,
            heads=decoder.heads,
        )
        if self.has_prior:
            start_at_prior_(self.decoder.out)
        if self.method == "token":
            self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))

    def forward(self, image: Tensor, hidden: Tensor) -> Tensor:
        """The reconstruction (B, C, X, Y, Z), of all voxels."""
        volume = self.decode(self.encode(image, hidden), hidden)
        return volume + linear_prior(image, hidden) if self.has_prior else volume

    def encode(self, image: Tensor, hidden: Tensor) -> Tensor:
        """The encoder's last tokens (B, T, width); with `mae` those of the visible blocks only."""
        embedding = self.vit.patch_embedding
        positions = embedding.position_embeddings
        if self.method == "mae":
            batch, rows = len(image), visible_rows(self._hidden_tokens(hidden), self.num_visible)
            units = split_units(image, self.grid).index_select(0, rows)
            tokens = embedding.patch_embeddings(units).flatten(1).unflatten(0, (batch, -1))
            positions = positions.expand(batch, -1, -1).flatten(0, 1).index_select(0, rows).view_as(tokens)
        else:
            if self.method == "blackout":
                image = image.masked_fill(blocks_to_voxels(hidden, image.shape[2:]), 0)
            tokens = embedding.patch_embeddings(image).flatten(2).mT
            if self.method == "token":
                covered = self._hidden_tokens(hidden).flatten(1).unsqueeze(2)
                tokens = torch.where(covered, self.mask_token.to(tokens.dtype), tokens)
        tokens = embedding.dropout(tokens + positions)
        for block in self.vit.blocks:
            tokens = block(tokens)
        last: Tensor = self.vit.norm(tokens)
        return last

    def decode(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """The reconstruction from what `encode` gives."""
        batch = len(tokens)
        tokens = self.decoder.project_in(tokens)
        if self.method == "mae":
            rows = visible_rows(self._hidden_tokens(hidden), self.num_visible)
            tokens = fill_rows(tokens.flatten(0, 1), rows, batch * prod(self.grid), self.decoder.hidden_token)
            tokens = tokens.unflatten(0, (batch, -1))
        else:
            shares = hidden_shares(hidden, self.grid).flatten(2).mT
            tokens = tokens + (shares * self.decoder.hidden_token).to(tokens.dtype)
        units = self.decoder.merge(tokens).reshape(-1, self.channels, *[UNETR_TOKEN] * 3)
        return join_units(units, self.grid)

    def _hidden_tokens(self, hidden: Tensor) -> Tensor:
        """Hidden blocks as hidden tokens (B, tx, ty, tz)."""
        return blocks_to_voxels(hidden, self.grid).squeeze(1)


def build_masked_vit(config: UNETRConfig, pretrain: PretrainConfig, in_channels: int, patch: Triple) -> MaskedViT:
    """The ViT of the UNETR that a `model` section describes, with its decoder for pre-training."""
    encoder = build_from_monai(config, in_channels, 2, patch=patch).vit  # with all that UNETR's builder does to it
    assert isinstance(encoder, ViT)
    return MaskedViT(encoder, pretrain, width=config.hidden_size, channels=in_channels, patch=patch)
