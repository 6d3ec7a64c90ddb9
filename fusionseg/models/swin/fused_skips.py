"""Fused skip connections: a stage's skip is made of its own map and of maps of the stages above and below it.

Sources: A. Dhar, "Swin Fusion UNETR" (2023), sections 4.3, 4.4 and 5.4; H. Huang et al., "UNet 3+" (2020,
arXiv:2004.08790), section 2.1, for the stages below and for equal widths. Stages count from 1, the input at full
resolution; stage *s* has 1 / 2**(s - 1) of it in each axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fusionseg.config.networks import FusionConfig
from fusionseg.models.memory_efficient.convolution_blocks import residual_block
from fusionseg.models.swin.context_bridge import ContextBridge
from fusionseg.models.upsampling import upsample

Maps = tuple[Tensor, ...]
"""One source at one resolution: a map for each kind of pooling, each (B, C, X, Y, Z)."""


class Source(NamedTuple):
    """What one stage gives to others."""

    own: Tensor
    """The map at the stage's own resolution, for the stages above."""
    halved: Maps
    """The maps pooled once, for the stages below; empty if none takes them."""


_POOLS: dict[str, tuple[Callable[[Tensor, int], Tensor], ...]] = {
    "max": (F.max_pool3d,),
    "avg": (F.avg_pool3d,),
    "maxavg": (F.max_pool3d, F.avg_pool3d),
}


class FusedSkips(nn.Module):
    """Turns the maps of an encoder into the skip connections of a decoder, as a `FusionConfig` says.

    `FusionConfig.fusion_sources` says who takes from whom and the rest of this class follows it, so other sources need
    no other class. With `source: encoder` every source has one residual block of its own (kernel 3), shared by
    all the stages that take from it. A context bridge, if there is one, comes last. The named variants are
    `fusionseg.config.networks.FUSION_PRESETS`.

    With `below` the skips are full-scale as in UNet 3+, and differ from it in this: UNet 3+ takes the *decoder's* maps
    of the stages below; here they are of the encoder, like those from above (with `source: skip`, the plain
    network's skips of those stages), so that all skips are made before the decoder runs. UNet 3+ has a convolution for
    every pair of stages, after the pooling or up-sampling; here a source's block comes before it, once, so a wide
    map of a low stage is brought to its width (`widths`) while it is small. The stage's own map keeps the plain
    skip's width, and the fused skip too, where UNet 3+ makes all of them equally wide. Up-sampling is trilinear, as
    theirs is bilinear: the final block's kernel of 1 could not smooth the edges that repeated voxels would have.

    Memory: stage 1 takes the maps of all lower stages at full resolution. In a patch of 96 a channel is 1.8 MB in
    16 bits, and with widths of 64 the final block's input has 48 + 5 * 64 channels, 0.65 GB for each sample, kept for
    the backward pass unless `use_checkpoint`. Without `widths` it would have 1536. `stages: [2, 3, 4, 5]` needs an
    eighth of it.

    Args:
        config: what is fused and how.
        encoder_channels: channels of the encoder's maps, of stages 1, 2, ...
        skip_channels: channels of the plain network's skips, of stages 1, 2, ...; a fused skip keeps them.
        use_checkpoint: recompute the sources' residual blocks in the backward pass, and the up-sampled maps with the
            blocks that take them; those of the first stages are large.
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
        self.fusion_sources = config.fusion_sources
        self.pools = _POOLS[config.pooling]
        self.takes_skips = config.source == "skip"
        self.use_checkpoint = use_checkpoint
        # Stages come in order, so the last one written is the last that takes from the source.
        pairs = [(stage, source) for stage, sources in self.fusion_sources.items() for source in sources]
        self.last_use = {source: stage for stage, source in pairs if source < stage}
        self.from_below = sorted({source for stage, source in pairs if source > stage})

        channels = skip_channels if self.takes_skips else encoder_channels
        if isinstance(config.widths, int):
            channels = [config.widths] * len(channels)
        widths = dict(enumerate(config.widths if isinstance(config.widths, tuple) else channels, start=1))
        self.sources = nn.ModuleDict()
        if not self.takes_skips:
            for source in sorted({*self.last_use, *self.from_below}):
                self.sources[f"stage{source}"] = residual_block(encoder_channels[source - 1], widths[source], 3)
        self.fuse = nn.ModuleDict()
        for stage, sources in self.fusion_sources.items():
            own = skip_channels[stage - 1]
            taken = sum(widths[source] * (len(self.pools) if source < stage else 1) for source in sources)
            kernel = config.kernel if stage <= 5 else config.bottleneck_kernel
            self.fuse[f"stage{stage}"] = residual_block(own + taken, own, kernel)
        self.bridge = None if config.bridge is None else ContextBridge(config.bridge, skip_channels)

    def forward(self, encoder_maps: Sequence[Tensor], skips: Sequence[Tensor]) -> list[Tensor]:
        """The skips with those of the fused stages replaced; the others are the same tensors.

        Args:
            encoder_maps: what the encoder gives, of stages s = 1, 2, ...: (B, C_s, X, Y, Z), the last three
                divided by 2**(s - 1).
            skips: the plain network's skips of the same stages, of the same sizes: what a stage itself brings
                into its fusion.
        """
        origin = skips if self.takes_skips else encoder_maps
        fused = list(skips)
        # Whoever takes from below comes before the source in the loop, so those blocks run first.
        entered = {source: self._enter(source, origin[source - 1]) for source in self.from_below}
        # Pooling by 2**n is n times pooling by 2, for the maximum and for the mean. So every source goes down
        # with the loop and is halved once per stage, however many stages take from it.
        pooled: dict[int, Maps] = {}
        for stage in range(1, max(self.fusion_sources, default=0) + 1):
            pooled = {s: self._halve(maps) for s, maps in pooled.items() if self.last_use[s] >= stage}
            if stage - 1 in self.last_use:
                source = entered.pop(stage - 1, None) or self._enter(stage - 1, origin[stage - 2])
                pooled[stage - 1] = source.halved
            if stage in self.fusion_sources:
                higher = [x for source in self.fusion_sources[stage] if source < stage for x in pooled[source]]
                lower = {source: entered[source].own for source in self.fusion_sources[stage] if source > stage}
                fused[stage - 1] = self._fuse(stage, [skips[stage - 1], *higher], lower)
        return fused if self.bridge is None else self.bridge(fused)

    def _enter(self, source: int, x: Tensor) -> Source:
        """What the source gives, from its encoder map or its skip."""
        if self.use_checkpoint and not self.takes_skips:
            # With the pooling inside, nothing new at the source's own resolution is kept for the backward.
            # There is no dropout in it, so no state of the generators to restore.
            out: Source = checkpoint(self._first_maps, source, x, use_reentrant=False, preserve_rng_state=False)
            return out
        return self._first_maps(source, x)

    def _first_maps(self, source: int, x: Tensor) -> Source:
        if not self.takes_skips:
            x = self.sources[f"stage{source}"](x)
        return Source(x, self._halve((x,) * len(self.pools)) if source in self.last_use else ())

    def _fuse(self, stage: int, maps: Sequence[Tensor], lower: Mapping[int, Tensor]) -> Tensor:
        """The fused skip, of maps of the stage's resolution and of those of the stages below by their numbers."""
        if self.use_checkpoint and lower:  # the up-sampled maps are large, and cheap to make again
            out: Tensor = checkpoint(self._fused, stage, maps, lower, use_reentrant=False, preserve_rng_state=False)
            return out
        return self._fused(stage, maps, lower)

    def _fused(self, stage: int, maps: Sequence[Tensor], lower: Mapping[int, Tensor]) -> Tensor:
        raised = [upsample(x, 2 ** (source - stage)) for source, x in lower.items()]
        out: Tensor = self.fuse[f"stage{stage}"](torch.cat([*maps, *raised], dim=1))
        return out

    def _halve(self, maps: Maps) -> Maps:
        return tuple(pool(x, 2) for pool, x in zip(self.pools, maps, strict=True))
