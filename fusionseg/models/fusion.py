"""Fused skip connections: a stage's skip is made of its own map and of maps of the stages above it.

Source: A. Dhar, "Swin Fusion UNETR" (2023), sections 4.3, 4.4 and 5.4; the idea is that of UNet 3+ (Huang et
al., 2020, arXiv:2004.08790) without the stages below. Stages count from 1, the input at full resolution;
stage *s* has 1 / 2**(s - 1) of it in each axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from monai.networks.blocks.unetr_block import UnetrBasicBlock
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fusionseg.config.networks import FusionConfig

Maps = tuple[Tensor, ...]
"""One source at one resolution: a map for each kind of pooling, each (B, C, X, Y, Z)."""

_POOLS: dict[str, tuple[Callable[[Tensor, int], Tensor], ...]] = {
    "max": (F.max_pool3d,),
    "avg": (F.avg_pool3d,),
    "maxavg": (F.max_pool3d, F.avg_pool3d),
}


def residual_block(in_channels: int, out_channels: int, kernel_size: int) -> UnetrBasicBlock:
    """MONAI's residual block as in Swin UNETR: convolutions without bias, instance norm without affine."""
    return UnetrBasicBlock(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=kernel_size,
        stride=1,
        norm_name="instance",
        res_block=True,
    )


def fusion_plan(config: FusionConfig) -> dict[int, tuple[int, ...]]:
    """The stages that each fused stage takes maps from, the highest resolution first."""
    plan: dict[int, tuple[int, ...]] = {}
    for stage in range(2, config.last_stage + 1):
        top = 1 if config.above == "all" else max(1, stage - config.above)
        plan[stage] = tuple(range(top, stage))
    return plan


class FusedSkips(nn.Module):
    """Turns the maps of an encoder into the skip connections of a decoder, as a `FusionConfig` says.

    `fusion_plan` says who takes from whom and the rest of this class follows it, so another plan needs no
    other class. With `source: encoder` every source has one residual block of its own (kernel 3), shared by
    all the stages that take from it. The thesis's variants are `fusionseg.config.networks.FUSION_PRESETS`.

    Args:
        config: what is fused and how.
        encoder_channels: channels of the encoder's maps, of stages 1, 2, ...
        skip_channels: channels of the plain network's skips, of stages 1, 2, ...; a fused skip keeps them.
        use_checkpoint: recompute the sources' residual blocks in the backward pass; those of the first stages
            are large.
    """

    def __init__(
        self,
        config: FusionConfig,
        encoder_channels: Sequence[int],
        skip_channels: Sequence[int],
        *,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.plan = fusion_plan(config)
        self.pools = _POOLS[config.pooling]
        self.pools_skips = config.source == "skip"
        self.use_checkpoint = use_checkpoint
        # Stages come in order, so the last one written is the last that takes from the source.
        self.last_use = {source: stage for stage, sources in self.plan.items() for source in sources}

        channels_pooled = skip_channels if self.pools_skips else config.widths or encoder_channels
        widths = dict(enumerate(channels_pooled, start=1))
        self.sources = nn.ModuleDict()
        if not self.pools_skips:
            for source in sorted(self.last_use):
                channels = encoder_channels[source - 1]
                self.sources[f"stage{source}"] = residual_block(channels, widths[source], 3)
        self.fuse = nn.ModuleDict()
        for stage, sources in self.plan.items():
            own = skip_channels[stage - 1]
            pooled = len(self.pools) * sum(widths[source] for source in sources)
            kernel = config.kernel if stage <= 5 else config.bottleneck_kernel
            self.fuse[f"stage{stage}"] = residual_block(own + pooled, own, kernel)

    def forward(self, encoder_maps: Sequence[Tensor], skips: Sequence[Tensor]) -> list[Tensor]:
        """The skips with those of the fused stages replaced.

        Args:
            encoder_maps: what the encoder gives, of stages s = 1, 2, ...: (B, C_s, X, Y, Z), the last three
                divided by 2**(s - 1).
            skips: the plain network's skips of the same stages, of the same sizes: what a stage itself brings
                into its fusion.
        """
        origin = skips if self.pools_skips else encoder_maps
        fused = list(skips)
        # Pooling by 2**n is n times pooling by 2, for the maximum and for the mean. So every source goes down
        # with the loop and is halved once per stage, however many stages take from it.
        pooled: dict[int, Maps] = {}
        for stage in range(2, max(self.plan) + 1):
            pooled = {s: self._halve(maps) for s, maps in pooled.items() if self.last_use[s] >= stage}
            if stage - 1 in self.last_use:
                pooled[stage - 1] = self._enter(stage - 1, origin[stage - 2])
            if stage in self.plan:
                taken = [x for source in self.plan[stage] for x in pooled[source]]
                fused[stage - 1] = self.fuse[f"stage{stage}"](torch.cat([skips[stage - 1], *taken], dim=1))
        return fused

    def _enter(self, source: int, x: Tensor) -> Maps:
        """The source's maps, pooled once: the resolution of the stage below it."""
        if self.use_checkpoint and not self.pools_skips:
            # With the pooling inside, nothing new at the source's own resolution is kept for the backward.
            # There is no dropout in it, so no state of the generators to restore.
            out: Maps = checkpoint(self._first_maps, source, x, use_reentrant=False, preserve_rng_state=False)
            return out
        return self._first_maps(source, x)

    def _first_maps(self, source: int, x: Tensor) -> Maps:
        if not self.pools_skips:
            x = self.sources[f"stage{source}"](x)
        return self._halve((x,) * len(self.pools))

    def _halve(self, maps: Maps) -> Maps:
        return tuple(pool(x, 2) for pool, x in zip(self.pools, maps, strict=True))
