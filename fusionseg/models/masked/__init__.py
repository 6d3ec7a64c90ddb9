"""Masked reconstruction: an encoder of `fusionseg.models`, and a light decoder that is thrown away afterwards.

The three methods differ in what the encoder sees. `blackout`: the volume, hidden voxels 0 (the thesis). `token`: the
same after the patch embedding, a learned token in their place (SimMIM: Xie et al., 2022, arXiv:2111.09886). `mae`: the
visible parts only (He et al., 2022, arXiv:2111.06377). In all of them the decoder is told what is hidden, by a learned
token at the hidden places of what it is given.
"""

from __future__ import annotations

from torch import nn

from fusionseg.config.networks import NetworkSection, SwinConfig, UNETRConfig
from fusionseg.config.pretraining import PretrainConfig

Triple = tuple[int, int, int]


def build_masked(
    model: NetworkSection,
    pretrain: PretrainConfig,
    *,
    in_channels: int,
    patch: Triple,
    checkpoint_activations: bool = False,
) -> nn.Module:
    """The network that reconstructs, freshly initialised, on the current default device.

    Its forward pass maps volumes (B, C, X, Y, Z) and their hidden blocks (B, gx, gy, gz), True where hidden, to
    reconstructions (B, C, X, Y, Z). Each sample hides `pretrain.num_hidden(patch)` blocks: what is visible has one
    size, without asking the device. The encoder has the name that it has in the network of `model`, so its weights
    hand over key for key; the rest is `decoder` and, for `token`, `mask_token`.

    Args:
        model: the network whose encoder is trained.
        in_channels: channels of the volumes.
        patch: size of the volumes; the schema has checked that the blocks suit it.
        checkpoint_activations: recompute the encoder's activations in the backward pass.

    Raises:
        ValueError: the network has no encoder that can be pre-trained.
    """
    assert model.can_checkpoint or not checkpoint_activations
    if isinstance(model, SwinConfig):
        from fusionseg.models.masked.swin import build_masked_swin

        return build_masked_swin(model, pretrain, in_channels, patch, checkpoint_activations=checkpoint_activations)
    if isinstance(model, UNETRConfig):
        from fusionseg.models.masked.vit import build_masked_vit

        return build_masked_vit(model, pretrain, in_channels, patch)
    raise ValueError(f"model.name: {model.name} has no encoder that can be pre-trained: choose swin_* or unetr")


__all__ = ["build_masked"]
