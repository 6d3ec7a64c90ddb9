"""Networks of masked pre-training: the encoder of a segmentation network, and a light decoder.

The decoder is not needed after pre-training. The three methods differ in the input of the encoder:

- `blackout`: the whole volume, with hidden voxels set to 0 (Dhar, 2023).
- `token`: the whole volume; a learned token replaces the patch embedding of hidden voxels (SimMIM: Xie et al., 2022,
  section 3, arXiv:2111.09886).
- `mae`: only the visible blocks (He et al., 2022, section 3, arXiv:2111.06377).

With every method the decoder's input has a learned token at the hidden places.
"""

from __future__ import annotations

from torch import nn

from fusionseg.config.parts.sections import NetworkSection
from fusionseg.config.pretraining import PretrainConfig
from fusionseg.config.section import Triple
from fusionseg.models.networks.swin import SwinConfig
from fusionseg.models.networks.unetr import UNETRConfig


def build_masked(
    model: NetworkSection,
    pretrain: PretrainConfig,
    *,
    in_channels: int,
    patch: Triple,
    checkpoint_activations: bool = False,
) -> nn.Module:
    """Build the network of masked pre-training with new weights, on torch's current default device.

    Its forward method maps volumes (B, C, X, Y, Z) and hidden blocks (B, gx, gy, gz), True for hidden, to
    reconstructions (B, C, X, Y, Z). Every sample must have `pretrain.num_hidden(patch)` hidden blocks: the number of
    visible blocks is then known without waiting for the device.

    In the state dict the encoder has the same prefix as in the segmentation network, so that its weights can be loaded
    there. The other keys are `decoder.*` and, for the method `token`, `mask_token`.

    Args:
        model: `model` section of the segmentation network whose encoder is pre-trained.
        pretrain: `pretrain` section.
        in_channels: channels of the volumes.
        patch: X, Y, Z of the volumes; the configuration has checked that the blocks tile it.
        checkpoint_activations: compute the encoder's activations again in the backward pass.

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
