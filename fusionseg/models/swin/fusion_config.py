"""Configuration of the fused skip connections and of the context bridge: keys under `model.fusion`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fusionseg.config.section import Ints, Positive, Section


class BridgeConfig(Section):
    """A context bridge after MISSFormer (Huang et al., 2021, arXiv:2109.07162): attention over several stages at once.

    The final skips of the stages, fused or plain, are reduced to a small grid and form one sequence of tokens; what
    `depth` transformer blocks make of it is added to them. `fusionseg.models.swin.context_bridge` says what differs
    from the paper.
    """

    stages: Ints = (3, 4, 5, 6)
    """The stages whose skips are bridged, of 2 to 6; the default are the four resolutions of MISSFormer."""
    grid: Literal[4, 5, 6] = 5
    """The stage to whose resolution the higher ones are reduced; lower ones keep their own. A patch of 96 has 6**3
    tokens for each of them at 5, 12**3 at 4, and 3**3 at 6."""
    width: Positive = 192
    """Channels of the tokens."""
    depth: Positive = 4
    """Transformer blocks, as many as in MISSFormer."""
    heads: Positive = 6
    """Attention heads; they divide `width`."""
    mlp_ratio: Positive = 4
    """Hidden width of the blocks' FFN, as a multiple of `width`."""

    @model_validator(mode="after")
    def _parts_fit(self) -> BridgeConfig:
        stages = list(self.stages)
        if not stages or stages != sorted(set(stages)) or not 2 <= stages[0] <= stages[-1] <= 6:
            raise ValueError(f"stages: needs some of the stages 2 to 6 in rising order, and has {stages}")
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide width: {self.width}: choose a divisor")
        return self


class FusionConfig(Section):
    """Fused skip connections (A. Dhar, "Swin Fusion UNETR", 2023, section 4.3).

    Stage 1 is the input, stages 2 to 6 are the hidden states of the Swin encoder, 1/2 to 1/32 of the
    resolution.
    At every fused stage the stage's own map is concatenated with maps of the stages above it, pooled down to
    its resolution, and of those below it, sampled up to it (full-scale skips, as in UNet 3+: Huang et al., 2020,
    arXiv:2004.08790), and a residual block makes the final skip connection of the result.
    """

    above: Annotated[int, Field(ge=0, le=5)] | Literal["all"] = "all"
    """How many of the stages directly above are fused (fewer where there are fewer)."""
    below: Annotated[int, Field(ge=0, le=5)] | Literal["all"] = 0
    """How many of the stages directly below are fused, down to the bottleneck, whether `last_stage` is 5 or 6. Their
    maps are up-sampled (trilinear). With it stage 1 is fused too, at the full resolution and in its memory."""
    stages: Ints | None = None
    """The stages that are fused, in rising order; the others keep plain skips. null means all from 1 to `last_stage`
    that have a stage to take from."""
    source: Literal["skip", "encoder"] = "encoder"
    """What is pooled or up-sampled: `skip` (the thesis's v1) the residual block's output that also goes to that stage's
    own decoder; `encoder` (v2) the encoder's map through a separate residual block made for this purpose."""
    pooling: Literal["max", "avg", "maxavg"] = "max"
    """Pooling to the lower resolution; `maxavg` concatenates both."""
    kernel: Literal[1, 3] = 1
    """Kernel of the final residual block of stages 1 to 5."""
    last_stage: Literal[5, 6] = 5
    """The lowest stage that is fused: 5, or 6 for the bottleneck too ("overdrive")."""
    bottleneck_kernel: Literal[1, 3] = 1
    """Kernel of the bottleneck's residual block when `last_stage` is 6 (it replaces the plain network's)."""
    widths: int | Ints | None = None
    """Channels of the pooled and up-sampled maps: one number for all of them (64 in UNet 3+), or a list with one for
    each of the stages 1 to `last_stage` - 1, with `below` of the stages 1 to 6; null leaves them as the encoder
    gives them. Only with `source: encoder`."""
    bridge: BridgeConfig | None = None
    """A context bridge over the skips that the fusion leaves; `{}` is one with its default settings."""

    @property
    def fusion_sources(self) -> dict[int, tuple[int, ...]]:
        """The stages that each fused stage takes maps from, the highest resolution first."""
        chosen = range(1, self.last_stage + 1) if self.stages is None else self.stages
        return {stage: sources for stage in chosen if (sources := self._sources(stage))}

    def _sources(self, stage: int) -> tuple[int, ...]:
        first = 1 if self.above == "all" else max(1, stage - self.above)
        last = 6 if self.below == "all" else min(6, stage + self.below)
        return tuple(source for source in range(first, last + 1) if source != stage)

    @model_validator(mode="after")
    def _stages_fit(self) -> FusionConfig:
        if self.stages is None:
            if not self.fusion_sources and self.bridge is None:
                raise ValueError("above: 0 with below: 0 fuses nothing: raise one of them, or add a bridge")
            return self
        stages = list(self.stages)
        if not stages or stages != sorted(set(stages)) or stages[0] < 1:
            raise ValueError(f"stages: needs stages in rising order, and has {stages}; leave it out for all of them")
        if stages[-1] > self.last_stage:
            hint = "set last_stage: 6, or " if stages[-1] == 6 else ""
            raise ValueError(f"stages: {stages[-1]} lies below last_stage: {self.last_stage}: {hint}take it out")
        for stage in stages:
            if not self._sources(stage):
                raise ValueError(
                    f"stages: {stage} has no stage to take from with above: {self.above} and below: {self.below}:"
                    " raise one of them, or take it out"
                )
        return self

    @field_validator("widths", mode="before")
    @classmethod
    def _widths_are_numbers(cls, raw: Any) -> Any:
        numbers = raw if isinstance(raw, list | tuple) else [raw]
        if raw is not None and not all(type(number) is int for number in numbers):
            raise ValueError(f"needs a whole number for all stages or a list with one for each, and is {raw!r}")
        return raw

    @model_validator(mode="after")
    def _widths_fit(self) -> FusionConfig:
        if self.widths is None:
            return self
        if self.source == "skip":
            raise ValueError("widths: need source: encoder (a v1 skip is the decoder's own and keeps its width)")
        needed = 6 if self.below else self.last_stage - 1
        given = [self.widths] * needed if isinstance(self.widths, int) else list(self.widths)
        if len(given) != needed or min(given) < 1:
            raise ValueError(
                f"widths: needs {needed} positive numbers, one for each of the stages 1 to {needed},"
                f" or one number for all, and has {self.widths if isinstance(self.widths, int) else given}"
            )
        return self


# The thesis's variants (section 4.4 and Table 2; MaxAvg in section 5.4), then what goes beyond it. Width factors are
# multiples of the feature size.
_OD: dict[str, Any] = {"above": "all", "source": "encoder", "last_stage": 6}
FUSION_PRESETS: dict[str, dict[str, Any]] = {
    "swin_fusion_1_v1": {"above": 1, "source": "skip"},
    "swin_fusion_2_v1": {"above": 2, "source": "skip"},
    "swin_fusion_2_v2": {"above": 2, "source": "encoder"},
    "swin_fusion_2_v2_k3": {"above": 2, "source": "encoder", "kernel": 3},
    "swin_fusion_2_v2_maxavg": {"above": 2, "source": "encoder", "pooling": "maxavg"},
    "swin_fusion_od": _OD,
    "swin_fusion_od_k3": {**_OD, "bottleneck_kernel": 3},
    "swin_fusion_od_large": {**_OD, "width_factors": (2, 2, 4, 4, 8)},
    # What section 6 leaves open: lower maps and equal widths. As in UNet 3+ the bottleneck only gives.
    "swin_fusion_full": {"above": "all", "below": "all", "widths": 64},
    # Over plain skips: it starts as the plain network, with the same weights, and shows what the bridge alone does.
    "swin_fusion_bridge": {"above": 0, "bridge": BridgeConfig()},
}
