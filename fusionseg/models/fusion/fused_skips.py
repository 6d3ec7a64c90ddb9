"""Fused skip connections: the skip of a stage combines its own map with maps of the stages above and below it.

Stage 1 has the full resolution. The strides between the stages are those of the encoder. "Above" is towards stage 1,
"below" is towards the bottleneck.

Sources: A. Dhar, "Swin Fusion UNETR" (2023, sections 4.3, 4.4 and 5.4); H. Huang et al., "UNet 3+" (2020, section 2.1,
arXiv:2004.08790) for maps of the stages below and for equal widths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fusionseg.config.section import Triple
from fusionseg.models.fusion.context_bridge import ContextBridge
from fusionseg.models.fusion.settings import FusionSettings
from fusionseg.models.fusion.upsampling import total_stride, upsample
from fusionseg.models.memory_efficient.convolution_blocks import ResidualBlock

Maps = tuple[Tensor, ...]
"""Maps of one fusion source at one resolution, (B, C, X, Y, Z), one for each kind of pooling."""


class SourceMaps(NamedTuple):
    """Maps that a fusion source provides for other stages."""

    full: Tensor
    """The map at the resolution of the source, for the stages above."""
    pooled: Maps
    """The maps at the resolution of the next stage, for the stages below, if they are not pooled with other sources."""


_POOLS: dict[str, tuple[Callable[[Tensor, Triple], Tensor], ...]] = {
    "max": (F.max_pool3d,),
    "avg": (F.avg_pool3d,),
    "maxavg": (F.max_pool3d, F.avg_pool3d),
}


class FusedSkips(nn.Module):
    """Skip connections of a decoder, made from the maps of an encoder as `FusionSettings` describe.

    `FusionSettings.sources_of` lists the fusion sources of each fused stage. With `source: encoder` each source has
    one residual block (kernel 3), shared by all stages that use the source. A context bridge, if configured, follows
    the fusion. The named variants are in `fusionseg.models.fusion.settings.VARIANTS`.

    With `below` the skips are full-scale skips as in UNet 3+, with these differences:

    * UNet 3+ uses maps of the decoder for the stages below. Here they are maps of the encoder (with `source: skip`, the
      skips of the plain network), as for the stages above, so that all skips are computed before the decoder.
    * UNet 3+ has a convolution for each pair of stages, after the pooling or up-sampling. Here the residual block of a
      source comes before it, so that a wide map of a low stage is reduced to its width (`widths`) while it is small.
    * The stage's own map and the fused skip keep the width of the plain skip. In UNet 3+ all maps have the same width.
    * Up-sampling is trilinear, the 3D equivalent of UNet 3+'s bilinear up-sampling. A nearest-neighbour up-sampling
      would leave edges that the final block's kernel of 1 cannot smooth.

    Memory: stage 1 uses the maps of all lower stages at full resolution. On a patch of 96, one channel takes 1.8 MB in
    16 bits. With widths of 64 the input of the final block has 48 + 5 * 64 channels, 0.65 GB for each sample, which are
    kept for the backward pass unless `use_checkpoint` is set. Without `widths` it would have 1536 channels.
    `stages: [2, 3, 4, 5]` needs an eighth of this memory.

    Args:
        config: stages, sources, pooling, widths and bridge of the fusion.
        encoder_channels: channels of the encoder's maps of stages 1, 2, ...
        skip_channels: channels of the plain network's skips of stages 1, 2, ...; a fused skip has the same number.
        strides: down-sampling factors from stages 1, 2, ... to the next one along each axis.
        use_checkpoint: compute the residual blocks of the sources again in the backward pass, and the up-sampled maps
            together with the final blocks that use them.
    """

    def __init__(
        self,
        config: FusionSettings,
        encoder_channels: Sequence[int],
        skip_channels: Sequence[int],
        strides: Sequence[Triple],
        *,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        num_stages = len(skip_channels)
        self.fusion_sources = config.sources_of(num_stages)
        self.strides = tuple(strides)
        self.pools = _POOLS[config.pooling]
        self.uses_skips = config.source == "skip"
        self.use_checkpoint = use_checkpoint
        pairs = [(stage, source) for stage, sources in self.fusion_sources.items() for source in sources]
        # The lowest stage that uses each source from above. Stages are in order: a later entry replaces an earlier one.
        self.last_use = {source: stage for stage, source in pairs if source < stage}
        self.sources_below = sorted({source for stage, source in pairs if source > stage})

        channels = skip_channels if self.uses_skips else encoder_channels
        if isinstance(config.widths, int):
            channels = [config.widths] * len(channels)
        widths = dict(enumerate(config.widths if isinstance(config.widths, tuple) else channels, start=1))
        self.sources = nn.ModuleDict()
        if not self.uses_skips:
            for source in sorted({*self.last_use, *self.sources_below}):
                self.sources[f"stage{source}"] = ResidualBlock(encoder_channels[source - 1], widths[source], 3)
        self.fuse = nn.ModuleDict()
        for stage, sources in self.fusion_sources.items():
            own = skip_channels[stage - 1]
            fused = sum(widths[source] * (len(self.pools) if source < stage else 1) for source in sources)
            kernel = config.kernel if stage < num_stages else config.bottleneck_kernel
            self.fuse[f"stage{stage}"] = ResidualBlock(own + fused, own, kernel)
        self.bridge = None if config.bridge is None else ContextBridge(config.bridge, skip_channels, strides)

    def forward(self, encoder_maps: Sequence[Tensor], skips: Sequence[Tensor]) -> list[Tensor]:
        """Return the skips of all stages; those that are not fused are the same tensors.

        Args:
            encoder_maps: maps of the encoder of stages s = 1, 2, ..., (B, C_s, X_s, Y_s, Z_s).
            skips: skips of the plain network, of the same stages and sizes. A fused stage uses its own skip as its own
                map.
        """
        inputs = skips if self.uses_skips else encoder_maps
        fused = list(skips)
        # A stage that uses a source below it comes before that source in the loop. These sources are computed first.
        computed = {source: self._source_maps(source, inputs[source - 1]) for source in self.sources_below}
        # Pooling by a product is pooling by one factor after the other, for the maximum and for the mean. So the loop
        # pools each source once for each stage, for any number of stages that use it, and all sources together.
        pooled = _Pooled((), ())
        for stage in range(1, max(self.fusion_sources, default=0) + 1):
            pooled = pooled.of([source for source in pooled.sources if self.last_use[source] >= stage])
            if stage - 1 in self.last_use:
                source = computed.pop(stage - 1, None) or self._source_maps(stage - 1, inputs[stage - 2])
                if source.pooled:
                    pooled = self._pool_joined(stage - 1, pooled).joined(stage - 1, source.pooled)
                else:
                    pooled = self._pool_joined(stage - 1, pooled.joined(stage - 1, (source.full,) * len(self.pools)))
            else:
                pooled = self._pool_joined(stage - 1, pooled)
            if stage in self.fusion_sources:
                higher = pooled.of([source for source in self.fusion_sources[stage] if source < stage]).in_order()
                lower = {source: computed[source].full for source in self.fusion_sources[stage] if source > stage}
                fused[stage - 1] = self._fuse(stage, [skips[stage - 1], *higher], lower)
        return fused if self.bridge is None else self.bridge(fused)

    def _source_maps(self, source: int, x: Tensor) -> SourceMaps:
        """Compute the maps of a source from its encoder map or its skip (B, C, X, Y, Z)."""
        if self.use_checkpoint and not self.uses_skips:
            # The pooling is inside the checkpoint, so that no new map at the resolution of the source is kept.
            # The block has no dropout, so that no random state has to be restored.
            out: SourceMaps = checkpoint(
                self._compute_source_maps, source, x, use_reentrant=False, preserve_rng_state=False
            )
            return out
        return self._compute_source_maps(source, x)

    def _compute_source_maps(self, source: int, x: Tensor) -> SourceMaps:
        if not self.uses_skips:
            x = self.sources[f"stage{source}"](x)
        pools_here = self.use_checkpoint and not self.uses_skips and source in self.last_use
        return SourceMaps(x, self._pool(source, (x,) * len(self.pools)) if pools_here else ())

    def _fuse(self, stage: int, maps: Sequence[Tensor], lower: Mapping[int, Tensor]) -> Tensor:
        """Compute the fused skip of a stage.

        Args:
            stage: the fused stage.
            maps: maps at the resolution of the stage.
            lower: source below the stage -> its map at its own resolution.
        """
        if self.use_checkpoint and lower:  # the up-sampled maps are large, but cheap to compute again
            out: Tensor = checkpoint(
                self._compute_fused, stage, maps, lower, use_reentrant=False, preserve_rng_state=False
            )
            return out
        return self._compute_fused(stage, maps, lower)

    def _compute_fused(self, stage: int, maps: Sequence[Tensor], lower: Mapping[int, Tensor]) -> Tensor:
        upsampled = [upsample(x, total_stride(self.strides[stage - 1 : source - 1])) for source, x in lower.items()]
        out: Tensor = self.fuse[f"stage{stage}"](_concatenate([*maps, *upsampled]))
        return out

    def _pool(self, stage: int, maps: Maps) -> Maps:
        """Pool maps at the resolution of a stage to that of the next one."""
        return tuple(pool(x, self.strides[stage - 1]) for pool, x in zip(self.pools, maps, strict=True))

    def _pool_joined(self, stage: int, pooled: _Pooled) -> _Pooled:
        return pooled._replace(maps=self._pool(stage, pooled.maps)) if pooled.sources else pooled


class _Pooled(NamedTuple):
    """Maps of several fusion sources at one resolution, with their channels joined."""

    sources: tuple[int, ...]
    widths: tuple[int, ...]
    """Channels of each source."""
    maps: Maps = ()

    def joined(self, source: int, maps: Maps) -> _Pooled:
        """Return these maps with those of another source after them."""
        joined = tuple(_concatenate(pair) for pair in zip(self.maps, maps, strict=True)) if self.sources else maps
        return _Pooled((*self.sources, source), (*self.widths, maps[0].shape[1]), joined)

    def of(self, sources: Sequence[int]) -> _Pooled:
        """Return the maps of some of the sources, in the same order."""
        if tuple(sources) == self.sources:
            return self
        kept = [index for index, source in enumerate(self.sources) if source in sources]
        parts = [[x.split(self.widths, dim=1)[index] for index in kept] for x in self.maps]
        maps = tuple(_concatenate(each) for each in parts) if kept else ()
        return _Pooled(tuple(self.sources[index] for index in kept), tuple(self.widths[index] for index in kept), maps)

    def in_order(self) -> list[Tensor]:
        """Return maps whose concatenation has all maps of the first source, then those of the next one."""
        if len(self.maps) < 2:
            return list(self.maps)
        parts = [x.split(self.widths, dim=1) for x in self.maps]
        return [part[index] for index in range(len(self.sources)) for part in parts]


def _concatenate(maps: Sequence[Tensor]) -> Tensor:
    """Concatenate the channels of maps (B, C, X, Y, Z); the result is channels-last in memory.

    A concatenation along the second axis takes the format of its arguments, which that of a map with one channel is not
    known to be.
    """
    if len(maps) == 1:
        return maps[0]
    return torch.cat([x.permute(0, 2, 3, 4, 1) for x in maps], dim=-1).permute(0, 4, 1, 2, 3)
