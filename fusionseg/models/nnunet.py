"""nnU-Net's U-Net on top of MONAI's DynUNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.nets.dynunet import DynUNet
from torch import Tensor

Triple = tuple[int, int, int]


class NNUNet(DynUNet):
    """MONAI's `DynUNet` as nnU-Net's U-Net: its function, and its state dict key for key.

    Two things differ. MONAI keeps the logits of the deep-supervision heads in a list of the module and returns them
    stacked, stretched to full resolution; here they are returned as they are, and computed in training only. And MONAI
    drops values of the logits too; here dropout ends before the heads.

    Args:
        in_channels: channels of the volumes.
        out_channels: classes, background included.
        filters: channels per level, from the top; at least three levels.
        kernels: kernel of each level, per axis.
        strides: downsampling from each level to the next, per axis; one fewer than filters.
        norm: "instance", "batch" or "group".
        dropout: share of the values that are dropped after each convolution in training, but for the heads.
        residual: one residual block on each level of the encoder instead of two convolutions.
        deep_supervision: heads at the lower resolutions too, in training.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        filters: Sequence[int],
        kernels: Sequence[Triple],
        strides: Sequence[Triple],
        norm: str,
        dropout: float,
        residual: bool,
        deep_supervision: bool,
    ) -> None:
        norms: dict[str, tuple[str, dict[str, Any]]] = {
            "instance": ("instance", {"affine": True}),
            "batch": ("batch", {}),
            "group": ("group", {"num_groups": 8}),
        }
        super().__init__(
            spatial_dims=3,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=kernels,
            strides=((1, 1, 1), *strides),
            upsample_kernel_size=strides,
            filters=filters,
            dropout=dropout or None,
            norm_name=norms[norm],
            deep_supervision=deep_supervision,
            # nnU-Net weighs its lowest head with 0; a network of three levels would be left with none
            deep_supr_num=max(1, len(filters) - 3),
            res_block=residual,
            trans_bias=True,
        )

    def get_output_block(self, idx: int) -> UnetOutBlock:
        return UnetOutBlock(self.spatial_dims, self.filters[idx], self.out_channels)

    def forward(self, x_BCXYZ: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, K, X, Y, Z); in training with deep supervision a list of them, the full resolution first."""
        skips = [self.input_block(x_BCXYZ)]
        for down in self.downsamples:
            skips.append(down(skips[-1]))
        x = self.bottleneck(skips[-1])
        decoded = []  # from the lowest resolution up
        for up in self.upsamples:
            x = up(x, skips.pop())
            decoded.append(x)
        logits: Tensor = self.output_block(x)
        if not (self.training and self.deep_supervision):
            return logits
        return [
            logits,
            *(head(x) for head, x in zip(self.deep_supervision_heads, decoded[-2::-1], strict=False)),
        ]
