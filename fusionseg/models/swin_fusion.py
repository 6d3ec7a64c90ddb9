"""Swin UNETR and Swin Fusion UNETR: one network, with plain or with fused skip connections.

Sources: A. Hatamizadeh et al., "Swin UNETR" (2022, arXiv:2201.01266); A. Dhar, "Swin Fusion UNETR" (2023).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrUpBlock
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fusionseg.config.networks.swin import SWIN_PATCH_MULTIPLE, FusionConfig, SwinConfig
from fusionseg.models.fusion import FusedSkips, residual_block


class _LinspaceOnCPU(TorchFunctionMode):
    """MONAI's encoder makes its drop-path rates by `linspace` and `.item()`, which the meta device cannot."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.linspace:
            kwargs = {**kwargs, "device": "cpu"}
        return func(*args, **kwargs)


def _up_block(in_channels: int, out_channels: int) -> UnetrUpBlock:
    return UnetrUpBlock(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=3,
        upsample_kernel_size=2,
        norm_name="instance",
        res_block=True,
    )


class SwinFusionUNETR(nn.Module):
    """Swin transformer encoder, convolutional decoder, and skip connections that are plain or fused.

    Without `fusion` this is MONAI's `SwinUNETR`: the same function, and the same state dict key for key. With
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
        fusion: how the skips are fused; None for plain ones.
        use_checkpoint: recompute activations of the encoder and of the fusion's sources in the backward pass.
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
        fusion: FusionConfig | None = None,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        size = feature_size
        with _LinspaceOnCPU():
            self.swinViT = SwinTransformer(
                in_chans=in_channels,
                embed_dim=size,
                window_size=(window_size,) * 3,
                patch_size=(2, 2, 2),
                depths=depths,
                num_heads=num_heads,
                drop_path_rate=drop_path_rate,
                use_checkpoint=use_checkpoint,
                spatial_dims=3,
            )
        # MONAI's names, those of its published weights: encoder10 is stage 6, and stage 5 has no block.
        self.encoder1 = residual_block(in_channels, size, 3)
        self.encoder2 = residual_block(size, size, 3)
        self.encoder3 = residual_block(2 * size, 2 * size, 3)
        self.encoder4 = residual_block(4 * size, 4 * size, 3)
        bottleneck_is_fused = fusion is not None and fusion.last_stage == 6
        self.encoder10 = nn.Identity() if bottleneck_is_fused else residual_block(16 * size, 16 * size, 3)
        self.fusion: FusedSkips | None = None
        if fusion is not None:
            hidden = [size * 2**i for i in range(5)]
            self.fusion = FusedSkips(
                fusion,
                encoder_channels=[in_channels, *hidden],
                skip_channels=[size, *hidden],
                use_checkpoint=use_checkpoint,
            )
        self.decoder5 = _up_block(16 * size, 8 * size)
        self.decoder4 = _up_block(8 * size, 4 * size)
        self.decoder3 = _up_block(4 * size, 2 * size)
        self.decoder2 = _up_block(2 * size, size)
        self.decoder1 = _up_block(size, size)
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
        logits: Tensor = self.out(x)
        return logits


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
        fusion=config.fusion,
        use_checkpoint=checkpoint_activations,
    )
