"""Swin UNETR and Swin Fusion UNETR: one network, with plain or with fused skip connections.

Sources: A. Hatamizadeh et al., "Swin UNETR" (2022, arXiv:2201.01266); A. Dhar, "Swin Fusion UNETR" (2023).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from monai.networks.blocks.dynunet_block import UnetOutBlock
from torch import Tensor, nn

from fusionseg.config.networks.swin import SWIN_PATCH_MULTIPLE, FusionConfig, SwinConfig
from fusionseg.models.memory_efficient.convolution_blocks import UpBlock, pointwise, residual_block
from fusionseg.models.swin.encoder import SwinEncoder
from fusionseg.models.swin.fused_skips import FusedSkips


class SwinFusionUNETR(nn.Module):
    """Swin transformer encoder, convolutional decoder, and skip connections that are plain or fused.

    Without `fusion` this is MONAI's `SwinUNETR` (with `residual_stages`, its `use_v2`): the same function, and the same
    state dict key for key. With
    it, all of those keys stay (but `encoder10.*` when the bottleneck is fused) and `fusion.*` is added, so
    weights of the plain network fit the others as far as they go.

    Args:
        in_channels: channels of the volumes.
        out_channels: classes, background included.
        feature_size: channels of the first encoder stage (stage 2); a multiple of 12.
        depths: Swin transformer blocks per stage.
        num_heads: attention heads per stage.
        window_size: voxels of an attention window in each axis, of the stage's resolution.
        drop_path_rate: stochastic depth, rising linearly to this over the blocks.
        residual_stages: a residual block of convolutions before each transformer stage, as in Swin UNETR V2.
        fusion: how the skips are fused; None for plain ones.
        checkpoint_stages: transformer stages, counted from 1, that are computed again in the backward pass.
        checkpoint_fusion: the same for the fusion's sources.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        feature_size: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        drop_path_rate: float = 0.0,
        residual_stages: bool = False,
        fusion: FusionConfig | None = None,
        checkpoint_stages: Collection[int] = (),
        checkpoint_fusion: bool = False,
    ) -> None:
        super().__init__()
        size = feature_size
        self.swinViT = SwinEncoder(
            in_channels,
            size,
            depths=depths,
            num_heads=num_heads,
            window_size=window_size,
            drop_path_rate=drop_path_rate,
            residual_stages=residual_stages,
            checkpoint_stages=checkpoint_stages,
        )
        # MONAI's names, those of its published weights: encoder10 is stage 6, and stage 5 has no block.
        self.encoder1 = residual_block(in_channels, size, 3)
        self.encoder2 = residual_block(size, size, 3)
        self.encoder3 = residual_block(2 * size, 2 * size, 3)
        self.encoder4 = residual_block(4 * size, 4 * size, 3)
        bottleneck_is_fused = fusion is not None and 6 in fusion.fusion_sources
        self.encoder10 = nn.Identity() if bottleneck_is_fused else residual_block(16 * size, 16 * size, 3)
        self.fusion: FusedSkips | None = None
        if fusion is not None:
            hidden = [size * 2**i for i in range(5)]
            self.fusion = FusedSkips(
                fusion,
                encoder_channels=[in_channels, *hidden],
                skip_channels=[size, *hidden],
                use_checkpoint=checkpoint_fusion,
            )
        self.decoder5 = UpBlock(16 * size, 8 * size)
        self.decoder4 = UpBlock(8 * size, 4 * size)
        self.decoder3 = UpBlock(4 * size, 2 * size)
        self.decoder2 = UpBlock(2 * size, size)
        self.decoder1 = UpBlock(size, size)
        self.out = UnetOutBlock(spatial_dims=3, in_channels=size, out_channels=out_channels)

    def forward(self, x_BCXYZ: Tensor) -> Tensor:
        """Logits (B, out_channels, X, Y, Z) of volumes (B, in_channels, X, Y, Z); X, Y, Z multiples of 32."""
        size_XYZ = tuple(x_BCXYZ.shape[2:])
        if any(n % SWIN_PATCH_MULTIPLE for n in size_XYZ):
            raise ValueError(f"Swin UNETR needs multiples of {SWIN_PATCH_MULTIPLE} in all axes, got {size_XYZ}")
        stages = [x_BCXYZ, *self.swinViT(x_BCXYZ, normalize=True)]
        skips = [
            self.encoder1(stages[0]),
            self.encoder2(stages[1]),
            self.encoder3(stages[2]),
            self.encoder4(stages[3]),
            stages[4],
            self.encoder10(stages[5]),
        ]
        if self.fusion is not None:
            skips = self.fusion(stages, skips)
        x = self.decoder5(skips[5], skips[4])
        x = self.decoder4(x, skips[3])
        x = self.decoder3(x, skips[2])
        x = self.decoder2(x, skips[1])
        x = self.decoder1(x, skips[0])
        last = self.out.conv.conv
        return pointwise(x, last.weight, last.bias)


def build_swin(
    config: SwinConfig, in_channels: int, out_channels: int, *, checkpoint_activations: bool
) -> SwinFusionUNETR:
    """The network that a `model` section describes."""
    return SwinFusionUNETR(
        in_channels,
        out_channels,
        feature_size=config.feature_size,
        depths=config.depths,
        num_heads=config.num_heads,
        window_size=config.window_size,
        drop_path_rate=config.drop_path_rate,
        residual_stages=config.residual_stages,
        fusion=config.fusion,
        checkpoint_stages=config.checkpoint_stages if checkpoint_activations else (),
        checkpoint_fusion=checkpoint_activations,
    )
