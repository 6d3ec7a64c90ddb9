"""Reference of the blocks with hand-written backward passes: plain operators, differentiated by autograd.

Each class replaces the forward method of a block, with its parameters. The blocks of convolutions are MONAI's. The
attention is torch's `scaled_dot_product_attention`. See `fusionseg.models.implementation`.

Sources: those of the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.nets.swin_unetr import PatchMerging as MonaiPatchMerging
from torch import Tensor, nn
from torch.nn import functional as F

from fusionseg.models.masked.swin import BlockAttention
from fusionseg.models.memory_efficient.convolution_blocks import OutputBlock, ResidualBlock, UpBlock
from fusionseg.models.memory_efficient.layer_norm import LayerNorm
from fusionseg.models.swin.attention import WindowAttention
from fusionseg.models.swin.encoder import SwinEncoder
from fusionseg.models.swin.mlp import Mlp
from fusionseg.models.swin.patch_merging import PatchMerging
from fusionseg.models.swin.window_layout import WindowLayout


class ReferenceResidualBlock(ResidualBlock):
    """MONAI's `UnetResBlock`."""

    implementation: ClassVar[str] = "reference"
    keeps_channels_last: ClassVar[bool] = False

    def forward(self, x_BCXYZ: Tensor) -> Tensor:
        """Map (B, in_channels, X, Y, Z) to (B, out_channels, X, Y, Z)."""
        out: Tensor = self.layer(x_BCXYZ)
        return out


class ReferenceUpBlock(UpBlock):
    """MONAI's `UnetrUpBlock`."""

    implementation: ClassVar[str] = "reference"
    keeps_channels_last: ClassVar[bool] = False

    def forward(self, low_BCXYZ: Tensor, skip_BCXYZ: Tensor) -> Tensor:
        """Map (B, in_channels, X, Y, Z) and a skip (B, out_channels, 2 X, 2 Y, 2 Z) to the shape of the skip."""
        out: Tensor = self.conv_block(torch.cat([self.transp_conv(low_BCXYZ), skip_BCXYZ], dim=1))
        return out


class ReferenceAttention(WindowAttention):
    """Window attention by `scaled_dot_product_attention`, one call for all windows with the same mask."""

    implementation: ClassVar[str] = "reference"

    def forward(
        self, x_BLC: Tensor, norm: nn.LayerNorm, layout: WindowLayout, score_bias: Tensor | None = None
    ) -> Tensor:
        """Return the output of the attention (B, L, C); see `WindowAttention`. It makes its own bias of the scores."""
        out: Tensor = self.proj(self.attend_groups(norm(x_BLC), layout, plain=True))
        return out


class ReferenceBlockAttention(ReferenceAttention, BlockAttention):
    """The same with the rows of the bias table of `BlockAttention`."""


class ReferenceMlp(Mlp):
    """Layer norm, linear layer, GELU, linear layer."""

    implementation: ClassVar[str] = "reference"

    def forward(self, x_BLC: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Return the output of the MLP (B, L, C), before the residual addition."""
        out: Tensor = self.linear2(F.gelu(self.linear1(norm(x_BLC))))
        return out


class ReferenceEncoder(SwinEncoder):
    """Swin encoder whose attention blocks make their own biases, with torch's layer norm."""

    def normalise(self, state_BXYZC: Tensor) -> Tensor:
        """Apply a layer norm without parameters over the channels of a hidden state."""
        return F.layer_norm(state_BXYZC, state_BXYZC.shape[-1:])

    def score_biases(self, x_BXYZC: Tensor) -> Sequence[Tensor | None]:
        """Return None for each block."""
        return self.no_score_biases()


_REFERENCES: dict[type[nn.Module], type[nn.Module]] = {
    ResidualBlock: ReferenceResidualBlock,
    UpBlock: ReferenceUpBlock,
    OutputBlock: UnetOutBlock,
    WindowAttention: ReferenceAttention,
    BlockAttention: ReferenceBlockAttention,
    Mlp: ReferenceMlp,
    PatchMerging: MonaiPatchMerging,
    LayerNorm: nn.LayerNorm,
    SwinEncoder: ReferenceEncoder,
}
"""The class of each block with its reference. Instances of both have the same parameters."""


def use_reference_(model: nn.Module) -> None:
    """Replace the blocks of a network by their references, in place; parameters and state dict stay."""
    for module in model.modules():
        if reference := _REFERENCES.get(type(module)):
            module.__class__ = reference  # the same parameters and settings, with another forward method
