"""nnU-Net's U-Net, based on MONAI's DynUNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.nets.dynunet import DynUNet
from torch import Tensor

from fusionseg.config.section import Triple


class NNUNet(DynUNet):
    """nnU-Net's U-Net with the state dict of MONAI's `DynUNet`.

    There are two differences to MONAI. MONAI stores the logits of the deep-supervision heads in the module, resizes
    them to full resolution and returns them stacked; here they are a list, each at its own resolution, and are computed
    in training mode only. MONAI applies dropout to the logits too; here there is no dropout in the heads.

    Args:
        in_channels: channels of the volumes.
        out_channels: classes, background included.
        filters: channels of each level, highest resolution first; at least three levels.
        kernels: kernel of each level along each axis.
        strides: downsampling factors between the levels along each axis; one fewer than filters.
        norm: "instance", "batch" or "group".
        dropout: probability that a value is dropped in training, after each convolution but those of the heads.
        residual: each level of the encoder has one residual block instead of two convolutions.
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
            # nnU-Net gives the lowest head the weight 0; a network of three levels would have no head left
            deep_supr_num=max(1, len(filters) - 3),
            res_block=residual,
            trans_bias=True,
        )

    def get_output_block(self, idx: int) -> UnetOutBlock:
        return UnetOutBlock(self.spatial_dims, self.filters[idx], self.out_channels)

    def forward(self, x_BCXYZ: Tensor) -> Tensor | list[Tensor]:
        """Map volumes (B, C, X, Y, Z) to logits (B, K, X, Y, Z).

        In training mode with deep supervision the result is a list of logits, full resolution first.
        """
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
