"""Masked pre-training of the residual-encoder U-Net, encoder and decoder together.

As in nnssl (Wald et al., 2025, arXiv:2410.23132) the whole U-Net reconstructs the volume, with its skip connections.
Encoder, fused skips and decoder keep their names, so that `init_from` loads all of them into the segmentation network.
The paper transfers encoder and decoder too; nnssl's trainer for fine-tuning loads the encoder alone.

Differences to nnssl: a learned token marks hidden places in the skips, as without it the decoder could not distinguish
a hidden block from air. The layer that gives the intensities has a name of its own, so that it is never taken for
that of the classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusionseg.config.pretraining import PretrainConfig
from fusionseg.models.masked.decoder import zero_initialise_
from fusionseg.models.masked.masking import add_token, blocks_to_voxels
from fusionseg.models.masked.network import MaskedNetwork
from fusionseg.models.resenc.network import ResEncUNet


class MaskedResEncUNet(MaskedNetwork):
    """A residual-encoder U-Net that reconstructs volumes whose hidden voxels are set to 0; see `build_masked`.

    Args:
        network: the U-Net, with an output for each channel of the volumes and without deep supervision. Its parts are
            used, and its head is replaced.
        pretrain: `pretrain` section, with the method `blackout`.
        widths: channels of the levels, highest resolution first.
    """

    def __init__(self, network: ResEncUNet, pretrain: PretrainConfig, widths: Sequence[int]) -> None:
        super().__init__(pretrain)
        self.use_checkpoint = network.use_checkpoint
        self.encoder = network.encoder
        self.fusion = network.fusion
        self.decoder = network.decoder
        ((last, head),) = self.decoder.seg_layers.items()
        assert isinstance(head, nn.Conv3d)
        self.decoder.seg_layers[last] = nn.Identity()
        self.reconstruct = head
        if self.has_prior:
            zero_initialise_(self.reconstruct)
        self.widths = list(widths)
        # Tokens of hidden places for all levels, concatenated
        self.hidden_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(sum(widths)), std=0.02))

    def encode(self, image: Tensor, hidden: Tensor) -> list[Tensor]:
        """Return the maps of all levels, full resolution first."""
        maps: list[Tensor] = self.encoder(image.masked_fill(blocks_to_voxels(hidden, image.shape[2:]), 0))
        return maps

    def decode(self, maps: list[Tensor], hidden: Tensor) -> Tensor:
        """Reconstruct the volume (B, C, X, Y, Z) from the output of `encode`."""
        tokens = self.hidden_token.split(self.widths)
        maps = [add_token(x, hidden, token) for x, token in zip(maps, tokens, strict=True)]
        if self.fusion is not None:
            maps = self.fusion(maps, maps)
        (full,) = self.decoder(maps, use_checkpoint=self.use_checkpoint)
        volume: Tensor = self.reconstruct(full)
        return volume
