"""Section and builder of MONAI's UNETR."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator

from fusionseg.config.parts.sections import NetworkSection
from fusionseg.config.pretraining import PretrainConfig
from fusionseg.config.registry import networks
from fusionseg.config.section import Positive, Probability, Triple
from fusionseg.models.patch_sizes import axes_problem

if TYPE_CHECKING:
    from torch import nn

    from fusionseg.models.masked.vit import MaskedViT

TOKEN = 16  # edge of a token in voxels; the decoder up-samples four times by 2


@networks.register()
class UNETRConfig(NetworkSection):
    """MONAI's UNETR (Hatamizadeh et al., 2022, arXiv:2103.10504): a vision transformer of 12 blocks over tokens of
    16^3 voxels, and a convolutional decoder. Its position embedding belongs to one size of patch."""

    encoder: ClassVar[str | None] = "vit"
    encoder_layer: ClassVar[str] = r"blocks\.\d+\."
    pretrain_methods: ClassVar[Mapping[str, int]] = {"blackout": 2, "token": TOKEN, "mae": TOKEN}

    name: Literal["unetr"]
    """The UNETR."""
    feature_size: Positive = 16
    """Channels of the decoder at full resolution."""
    hidden_size: Positive = 768
    """Channels of a token."""
    mlp_dim: Positive = 3072
    """Hidden channels of the MLP in a transformer block."""
    num_heads: Positive = 12
    """Attention heads; they divide hidden_size."""
    pos_embed: Literal["learnable", "sincos"] = "learnable"
    """Position embedding: learned, or fixed sines and cosines (hidden_size must then be a multiple of 6)."""
    dropout: Probability = 0.0
    """Probability that a value in the transformer is dropped in training."""

    @model_validator(mode="after")
    def _widths_fit(self) -> UNETRConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"num_heads: {self.num_heads} does not divide hidden_size {self.hidden_size}; choose a divisor, or"
                " another hidden_size"
            )
        if self.pos_embed == "sincos" and self.hidden_size % 6:
            raise ValueError(
                f"hidden_size: {self.hidden_size} is no multiple of 6 (a sine and a cosine for each axis); choose"
                " one, or pos_embed: learnable"
            )
        return self

    def build(
        self, *, in_channels: int, out_channels: int, patch: Triple | None, checkpoint_activations: bool
    ) -> nn.Module:
        """Build the network with new weights; see `fusionseg.models.build_model`."""
        from monai.networks.nets.unetr import UNETR

        if patch is None:
            raise ValueError(
                "build_model: unetr needs the size of the volumes for its position embedding; give the argument patch"
            )
        network = UNETR(
            spatial_dims=3,
            in_channels=in_channels,
            out_channels=out_channels,
            img_size=patch,
            feature_size=self.feature_size,
            hidden_size=self.hidden_size,
            mlp_dim=self.mlp_dim,
            num_heads=self.num_heads,
            dropout_rate=self.dropout,
        )
        if self.pos_embed == "sincos":
            network.vit.patch_embedding.position_embeddings = self._sincos(patch)
        for block in network.vit.blocks:
            # MONAI's blocks have unused cross-attention parameters without a gradient; DDP would wait for it. They are
            # frozen instead of removed, so that MONAI's weights can be loaded.
            block.norm_cross_attn.requires_grad_(False)
            block.cross_attn.requires_grad_(False)
        return network  # type: ignore[no-any-return]

    def build_masked(
        self, pretrain: PretrainConfig, *, in_channels: int, patch: Triple, checkpoint_activations: bool
    ) -> MaskedViT:
        """Build the ViT with new weights, and a decoder; see `fusionseg.models.masked.build_masked`."""
        from monai.networks.nets.vit import ViT

        from fusionseg.models.masked.vit import MaskedViT

        # The whole network is built and its encoder taken, so that only `build` knows how it is built.
        network = self.build(in_channels=in_channels, out_channels=2, patch=patch, checkpoint_activations=False)
        encoder = network.vit
        assert isinstance(encoder, ViT)
        return MaskedViT(encoder, pretrain, width=self.hidden_size, token=TOKEN, channels=in_channels, patch=patch)

    def _sincos(self, patch: Triple) -> nn.Parameter:
        from monai.networks.blocks.pos_embed_utils import build_sincos_position_embedding

        grid = [size // TOKEN for size in patch]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.meshgrid")  # MONAI relies on the default of `indexing`
            embedding: nn.Parameter = build_sincos_position_embedding(grid, self.hidden_size, spatial_dims=3)
        return embedding

    def patch_problem(self, patch: Triple) -> str | None:
        """Return the problem of training on patches of this size, with a remedy; None if there is none."""
        return axes_problem(self.name, patch, (TOKEN,) * 3)
