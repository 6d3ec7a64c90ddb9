"""Masked reconstruction with the encoder of Swin UNETR.

`mae` follows two ideas. GreenMIM (Huang et al., 2022, arXiv:2205.13515) leaves the hidden patches of a Swin encoder
out, and groups what windows still hold so that no attention is computed for nothing. Hiera (Ryali et al., 2023,
arXiv:2306.00989) hides units as large as a token of the last stage, so that a unit is visible or hidden as a whole at
all stages, and lets the first stages attend within units. Here units are hidden as in Hiera, in at least the 32 voxels
of a token of the last map; and each visible unit is a small volume of its own, folded into the batch. Windows tile it,
smaller ones than the network's where those do not; shifted ones stay inside, as at the border of a volume. Nothing has
to be grouped, since no window is half-filled. What differs from both: units exchange nothing in the encoder, at no
stage. That is the decoder's part, and the fine-tuned network's, whose windows do cross where units met.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionseg.config.networks import SwinConfig
from fusionseg.config.pretraining import PretrainConfig
from fusionseg.models.masked.block_grid import fill_rows, hidden_shares, join_units, split_units, visible_rows
from fusionseg.models.masked.decoder import PyramidDecoder, linear_prior, start_at_prior_
from fusionseg.models.masked.hidden_voxels import blocks_to_voxels
from fusionseg.models.swin.attention import WindowAttention
from fusionseg.models.swin.encoder import SwinBlock, SwinEncoder, SwinStage
from fusionseg.models.swin.network import build_swin

Triple = tuple[int, int, int]


class MaskedSwin(nn.Module):
    """A Swin encoder and the decoder that reconstructs from its five maps; see the module and `build_masked`.

    Args:
        encoder: Swin encoder whose maps have feature_size, 2 feature_size, ... channels.
        feature_size: channels of its first map.
        channels: of the volumes.
        patch: size of the volumes.
    """

    def __init__(
        self, encoder: SwinEncoder, pretrain: PretrainConfig, *, feature_size: int, channels: int, patch: Triple
    ) -> None:
        super().__init__()
        self.method = pretrain.method
        self.has_prior = pretrain.prior == "linear"
        self.grid = pretrain.grid(patch)
        self.num_visible = prod(self.grid) - pretrain.num_hidden(patch)
        self.swinViT = encoder
        self.decoder = PyramidDecoder(
            [feature_size * 2**scale for scale in range(5)],
            channels,
            width=pretrain.decoder.width,
            depth=pretrain.decoder.depth,
        )
        if self.has_prior:
            start_at_prior_(self.decoder.out)
        if self.method == "token":
            self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(feature_size), std=0.02))

    def forward(self, image: Tensor, hidden: Tensor) -> Tensor:
        """The reconstruction (B, C, X, Y, Z), of all voxels."""
        volume = self.decode(self.encode(image, hidden), hidden)
        return volume + linear_prior(image, hidden) if self.has_prior else volume

    def encode(self, image: Tensor, hidden: Tensor) -> list[Tensor]:
        """The encoder's five maps; with `mae` those of the visible units, folded into the batch."""
        if self.method == "mae":
            rows = visible_rows(hidden, self.num_visible)
            image = split_units(image, self.grid).index_select(0, rows)
        elif self.method == "blackout":
            image = image.masked_fill(blocks_to_voxels(hidden, image.shape[2:]), 0)
        embedded = self.swinViT.patch_embed(image)
        if self.method == "token":
            token = self.mask_token.to(embedded.dtype).view(1, -1, 1, 1, 1)
            embedded = torch.where(blocks_to_voxels(hidden, embedded.shape[2:]), token, embedded)
        states: list[Tensor] = self.swinViT.stages(embedded, normalize=True)
        return states

    def decode(self, states: list[Tensor], hidden: Tensor) -> Tensor:
        """The reconstruction from what `encode` gives."""
        maps = self.decoder.project(states)
        tokens = self.decoder.hidden_token.split(self.decoder.widths)
        if self.method == "mae":  # after the projection: the decoder's maps are narrower than the encoder's
            rows = visible_rows(hidden, self.num_visible)
            maps = [
                join_units(fill_rows(units, rows, hidden.numel(), token), self.grid)
                for units, token in zip(maps, tokens, strict=True)
            ]
        else:  # Black may be air: without this, nothing tells the one from the other.
            maps = [
                x + hidden_shares(hidden, x.shape[2:]).to(x.dtype) * token.to(x.dtype).view(-1, 1, 1, 1)
                for x, token in zip(maps, tokens, strict=True)
            ]
        return self.decoder.merge(maps)


class UnitAttention(WindowAttention):
    """Window attention for windows smaller than those that it was made for: same parameters, same names.

    The bias of two tokens is that of their offset. `WindowAttention` takes the first rows and columns of its index
    instead, as MONAI does, and so gives a smaller window the biases of other offsets: what was learnt in units would
    mean something else in whole windows.
    """

    def position_bias(self, length: int) -> Tensor:
        """(heads, n, n) added to the scores of cubic windows of n tokens."""
        full, edge = (round(tokens ** (1 / 3)) for tokens in (len(self.relative_position_index), length))
        index = self.relative_position_index.view([full] * 6)
        for axis in range(6):
            index = index.narrow(axis, 0, edge)
        index = index.reshape(length, length)
        return F.embedding(index, self.relative_position_bias_table).permute(2, 0, 1).contiguous()


def attend_within_units(encoder: SwinEncoder, block: int) -> None:
    """Make the windows of each stage the largest that tile a unit of `block` voxels, at most their own size.

    A window of 7 in a unit of 16 tokens would be computed 27 times, on padding for more than half; 64 windows of 4 fit.
    """
    for stage in swin_stages(encoder):
        block //= 2  # tokens of a unit in each axis
        stage.window_size = max(size for size in range(1, stage.window_size + 1) if block % size == 0)
        for part in stage.blocks:
            assert isinstance(part, SwinBlock)
            own = part.attn
            window = round(len(own.relative_position_index) ** (1 / 3))
            part.attn = UnitAttention(own.proj.in_features, own.num_heads, window)
            part.attn.load_state_dict(own.state_dict())


def swin_stages(encoder: SwinEncoder) -> list[SwinStage]:
    """The stages of an encoder, the highest resolution first."""
    return [module for module in encoder.modules() if isinstance(module, SwinStage)]


def build_masked_swin(
    config: SwinConfig, pretrain: PretrainConfig, in_channels: int, patch: Triple, *, checkpoint_activations: bool
) -> MaskedSwin:
    """The encoder of the Swin network that a `model` section describes, with its decoder for pre-training."""
    # The whole network is built for its encoder: whatever the section says of it is then read in one place.
    encoder = build_swin(config, in_channels, 2, checkpoint_activations=checkpoint_activations).swinViT
    if pretrain.method == "mae":
        attend_within_units(encoder, pretrain.block)
    return MaskedSwin(encoder, pretrain, feature_size=config.feature_size, channels=in_channels, patch=patch)
