"""Swin UNETR and Swin Fusion UNETR: one network with plain or fused skip connections.

Sources: A. Hatamizadeh et al., "Swin UNETR" (2022, section 3, arXiv:2201.01266); A. Dhar, "Swin Fusion UNETR" (2023,
chapter 4).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor, nn

from fusionseg.models.device_kind import device_kind
from fusionseg.models.fusion.fused_skips import FusedSkips
from fusionseg.models.memory_efficient.autograd_helpers import matmul_dtype
from fusionseg.models.memory_efficient.convolution_blocks import OutputBlock, ResidualBlock, UpBlock
from fusionseg.models.swin import PATCH_MULTIPLE
from fusionseg.models.swin.encoder import SwinEncoder
from fusionseg.models.swin.fusion_config import FusionConfig


class SwinFusionUNETR(nn.Module):
    """Swin transformer encoder, convolutional decoder, plain or fused skip connections.

    Without `fusion` the network has the output and the state dict of MONAI's `SwinUNETR` (with `residual_stages`, those
    of its `use_v2=True`). With `fusion` it has these keys too, and `fusion.*` in addition. Only `encoder10.*` is
    missing if the bottleneck is fused. So weights of the plain network can be loaded into the other variants.

    Args:
        in_channels: channels of the volumes.
        out_channels: number of classes, the background included.
        feature_size: channels of the first hidden state of the encoder (stage 2); a multiple of 12.
        depths: transformer blocks of each stage.
        num_heads: attention heads of each stage.
        window_size: edge of an attention window in voxels of the stage's resolution.
        drop_path_rate: stochastic depth rate of the last block; the rate rises linearly from 0 over the blocks.
        residual_stages: put a residual block of convolutions before each transformer stage (Swin UNETR V2).
        fusion: configuration of the fused skips; None for plain skips.
        checkpoint_stages: transformer stages, counted from 1, that are computed again in the backward pass.
        checkpoint_fusion: compute the blocks of the fusion sources again in the backward pass.
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
        # The names are those of MONAI's published weights: encoder10 is stage 6, and stage 5 has no block.
        self.encoder1 = ResidualBlock(in_channels, size, 3)
        self.encoder2 = ResidualBlock(size, size, 3)
        self.encoder3 = ResidualBlock(2 * size, 2 * size, 3)
        self.encoder4 = ResidualBlock(4 * size, 4 * size, 3)
        bottleneck_is_fused = fusion is not None and 6 in fusion.fusion_sources
        self.encoder10 = nn.Identity() if bottleneck_is_fused else ResidualBlock(16 * size, 16 * size, 3)
        self.fusion: FusedSkips | None = None
        if fusion is not None:
            hidden = [size * 2**i for i in range(5)]
            self.fusion = FusedSkips(
                fusion,
                encoder_channels=[in_channels, *hidden],
                skip_channels=[size, *hidden],
                strides=[(2, 2, 2)] * 5,
                use_checkpoint=checkpoint_fusion,
            )
        self.decoder5 = UpBlock(16 * size, 8 * size)
        self.decoder4 = UpBlock(8 * size, 4 * size)
        self.decoder3 = UpBlock(4 * size, 2 * size)
        self.decoder2 = UpBlock(2 * size, size)
        self.decoder1 = UpBlock(size, size)
        self.out = OutputBlock(spatial_dims=3, in_channels=size, out_channels=out_channels)

    def forward(self, x_BCXYZ: Tensor) -> Tensor:
        """Map volumes (B, in_channels, X, Y, Z) to logits (B, out_channels, X, Y, Z).

        Raises:
            ValueError: X, Y or Z is no multiple of 32, or all of them are 32: instance norm needs at least two voxels.
        """
        size_XYZ = tuple(x_BCXYZ.shape[2:])
        if any(n % PATCH_MULTIPLE for n in size_XYZ):
            raise ValueError(f"Swin UNETR: wrong volume size (expected multiples of {PATCH_MULTIPLE}, got {size_XYZ})")
        if device_kind(x_BCXYZ) != "cpu":  # on a CPU the patch embedding may need the image in float32
            x_BCXYZ = x_BCXYZ.to(matmul_dtype(x_BCXYZ))  # once for all blocks that take the image
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
        logits: Tensor = self.out(x)
        return logits
