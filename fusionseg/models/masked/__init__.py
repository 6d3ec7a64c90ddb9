"""Networks of masked pre-training: the encoder of a segmentation network, and a decoder.

The encoders of Swin UNETR and of UNETR have a light decoder that is not needed after pre-training. The residual-encoder
U-Net is pre-trained with its own decoder. The three methods differ in the input of the encoder:

- `blackout`: the whole volume, with hidden voxels set to 0 (Dhar, 2023).
- `token`: the whole volume; a learned token replaces the patch embedding of hidden voxels (SimMIM: Xie et al., 2022,
  section 3, arXiv:2111.09886).
- `mae`: only the visible blocks (He et al., 2022, section 3, arXiv:2111.06377).

With every method the decoder's input has a learned token at the hidden places.

The section of a network says with which methods it can be pre-trained (`pretrain_methods`), and builds the network of
its pre-training (`build_masked`).
"""

from __future__ import annotations

from torch import nn

from fusionseg.config.parts.sections import NetworkSection
from fusionseg.config.pretraining import PretrainConfig
from fusionseg.config.section import Triple


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

    In the state dict the parts of the segmentation network have the same prefix as there, so that their weights can be
    loaded: the encoder `swinViT.*` or `vit.*`; or `encoder.*`, `fusion.*` and `decoder.*` of the residual-encoder
    U-Net. All other tensors have names that the segmentation network does not have.

    Args:
        model: `model` section of the segmentation network that is pre-trained.
        pretrain: `pretrain` section.
        in_channels: channels of the volumes.
        patch: X, Y, Z of the volumes; the configuration has checked that the blocks tile it.
        checkpoint_activations: compute the encoder's activations again in the backward pass.

    Raises:
        ValueError: the network has no encoder that can be pre-trained.
    """
    assert model.can_checkpoint or not checkpoint_activations
    if not model.pretrain_methods:
        raise ValueError(f"model.name: {model.name} has no encoder that can be pre-trained; choose another network")
    return model.build_masked(
        pretrain, in_channels=in_channels, patch=patch, checkpoint_activations=checkpoint_activations
    )


__all__ = ["build_masked"]
