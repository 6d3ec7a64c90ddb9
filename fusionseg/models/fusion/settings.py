"""Settings of the fused skip connections and of the context bridge, for encoders of any number of stages; variants."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fusionseg.config.section import Ints, Positive, Section


class BridgeConfig(Section):
    """A context bridge after MISSFormer (Huang et al., 2021, arXiv:2109.07162): attention over several stages at once.

    The skips of the stages, fused or plain, are reduced to a small grid and form one sequence of tokens. `depth`
    transformer blocks process the sequence, and the result is added to the skips. The differences to the paper are
    listed in `fusionseg.models.fusion.context_bridge`.
    """

    stages: Ints = (3, 4, 5, 6)
    """Stages below the first, down to the bottleneck, whose skips are bridged; the default is the four resolutions of
    MISSFormer."""
    grid: Literal[4, 5, 6] = 5
    """Stage to whose resolution the maps of higher stages are reduced; lower stages keep their resolution. On a patch
    of 96 each map has 12**3 tokens with 4, 6**3 with 5, and 3**3 with 6."""
    width: Positive = 192
    """Channels of the tokens."""
    depth: Positive = 4
    """Transformer blocks; MISSFormer has four too."""
    heads: Positive = 6
    """Attention heads; they divide `width`."""
    mlp_ratio: Positive = 4
    """Hidden channels of the blocks' FFN, as a multiple of `width`."""

    def stages_problem(self, num_stages: int) -> str | None:
        """Return the problem of the bridge in a network of `num_stages` stages; None if there is none."""
        if num_stages < 4:
            return f"grid: a bridge needs a network of at least 4 stages, got {num_stages}; set bridge: null"
        stages = list(self.stages)
        if not stages or stages != sorted(set(stages)) or not 2 <= stages[0] <= stages[-1] <= num_stages:
            return f"stages: expected some of the stages 2 to {num_stages} in rising order, got {stages}"
        if self.grid > num_stages:
            return f"grid: expected one of the stages 4 to {num_stages}, got {self.grid}"
        return None

    @model_validator(mode="after")
    def _heads_fit(self) -> BridgeConfig:
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide width: {self.width}; choose a divisor")
        return self


class FusionSettings(Section):
    """Fused skip connections (A. Dhar, "Swin Fusion UNETR", 2023, section 4.3), for a network of N stages.

    Stage 1 has the full resolution, stage N is the bottleneck. The own map of a fused stage is concatenated with maps
    of stages above it, pooled to its resolution, and of stages below it, up-sampled to its resolution (full-scale
    skips as in UNet 3+: Huang et al., 2020, arXiv:2004.08790). A residual block then computes the skip connection.

    The number of stages belongs to the network, so that the network's section calls `stages_problem`.
    """

    above: Annotated[int, Field(ge=0)] | Literal["all"] = "all"
    """Number of stages directly above that are fused (fewer if there are fewer)."""
    below: Annotated[int, Field(ge=0)] | Literal["all"] = 0
    """Number of stages directly below that are fused; the bottleneck is the last one for any `last_stage`. Their maps
    are up-sampled (trilinear). Stage 1 is then fused too, which takes much memory at full resolution."""
    stages: Ints | None = None
    """Stages that are fused, in rising order; the others keep plain skips. null is all stages from 1 to `last_stage`
    that have a fusion source."""
    source: Literal["skip", "encoder"] = "encoder"
    """Maps that are pooled or up-sampled. `skip` (v1 of the thesis): the skip of the source stage, which its decoder
    uses too. `encoder` (v2): the encoder's map of the source stage, after a residual block of its own."""
    pooling: Literal["max", "avg", "maxavg"] = "max"
    """Pooling to the lower resolution; `maxavg` concatenates both."""
    kernel: Literal[1, 3] = 1
    """Kernel of the final residual blocks of all stages but the bottleneck."""
    last_stage: Positive | None = None
    """Lowest stage that is fused: that above the bottleneck (null), or the number of stages for the bottleneck too
    ("overdrive" in the thesis)."""
    bottleneck_kernel: Literal[1, 3] = 1
    """Kernel of the residual block of a fused bottleneck."""
    widths: int | Ints | None = None
    """Channels of the pooled and up-sampled maps: one number for all of them (64 in UNet 3+), or a list with one number
    for each of the stages 1 to `last_stage` - 1 (with `below`: for all stages). null is the number of the encoder's
    map. Only with `source: encoder`."""
    bridge: BridgeConfig | None = None
    """A context bridge over the skips after the fusion; `{}` has the default settings."""

    def sources_of(self, num_stages: int) -> dict[int, tuple[int, ...]]:
        """Return fused stage -> its fusion sources, highest resolution first.

        Args:
            num_stages: stages of the network, the bottleneck included.
        """
        chosen = range(1, self._last_stage(num_stages) + 1) if self.stages is None else self.stages
        return {stage: sources for stage in chosen if (sources := self._sources(stage, num_stages))}

    def _last_stage(self, num_stages: int) -> int:
        return num_stages - 1 if self.last_stage is None else self.last_stage

    def _sources(self, stage: int, num_stages: int) -> tuple[int, ...]:
        first = 1 if self.above == "all" else max(1, stage - self.above)
        last = num_stages if self.below == "all" else min(num_stages, stage + self.below)
        return tuple(source for source in range(first, last + 1) if source != stage)

    def stages_problem(self, num_stages: int) -> str | None:
        """Return the problem of these settings in a network of `num_stages` stages; None if there is none."""
        last = self._last_stage(num_stages)
        if last not in (num_stages - 1, num_stages):
            return (
                f"last_stage: expected {num_stages - 1}, or {num_stages} for the bottleneck too, got {last}; the"
                f" network has {num_stages} stages"
            )
        if self.bridge is not None and (problem := self.bridge.stages_problem(num_stages)):
            return f"bridge.{problem}"
        return self._chosen_stages_problem(last, num_stages) or self._widths_problem(num_stages)

    def _chosen_stages_problem(self, last: int, num_stages: int) -> str | None:
        if self.stages is None:
            if not self.sources_of(num_stages) and self.bridge is None:
                return "above: 0 with below: 0 fuses nothing; raise one of them, or add a bridge"
            return None
        stages = list(self.stages)
        if not stages or stages != sorted(set(stages)) or stages[0] < 1:
            return f"stages: expected stages in rising order, got {stages}; remove the key for all stages"
        if stages[-1] > last:
            hint = f"set last_stage: {num_stages}, or " if stages[-1] == num_stages else ""
            return f"stages: {stages[-1]} is below last_stage: {last}; {hint}remove it"
        for stage in stages:
            if not self._sources(stage, num_stages):
                return (
                    f"stages: {stage} has no fusion source with above: {self.above} and below: {self.below}; raise one"
                    " of them, or remove the stage"
                )
        return None

    def _widths_problem(self, num_stages: int) -> str | None:
        if self.widths is None:
            return None
        needed = num_stages if self.below else self._last_stage(num_stages) - 1
        given = [self.widths] * needed if isinstance(self.widths, int) else list(self.widths)
        if len(given) == needed and min(given) >= 1:
            return None
        return (
            f"widths: expected {needed} positive integers, one for each of the stages 1 to {needed}, or one for"
            f" all, got {self.widths if isinstance(self.widths, int) else given}"
        )

    @field_validator("widths", mode="before")
    @classmethod
    def _widths_are_numbers(cls, raw: Any) -> Any:
        numbers = raw if isinstance(raw, list | tuple) else [raw]
        if raw is not None and not all(type(number) is int for number in numbers):
            raise ValueError(f"expected an integer for all stages or a list with one for each, got {raw!r}")
        return raw

    @model_validator(mode="after")
    def _widths_need_source_blocks(self) -> FusionSettings:
        if self.widths is not None and self.source == "skip":
            raise ValueError(
                "widths: only for source: encoder (a skip keeps the width that its decoder needs); remove the key"
            )
        return self


# First the variants of the thesis (section 4.4 and Table 2; MaxAvg in section 5.4), then others. A variant that fuses
# the bottleneck has `last_stage: 6`, for the six stages of Swin UNETR. `width_factors` are multiples of Swin UNETR's
# feature size.
_OD: dict[str, Any] = {"above": "all", "source": "encoder", "last_stage": 6}
VARIANTS: dict[str, dict[str, Any]] = {
    "1_v1": {"above": 1, "source": "skip"},
    "2_v1": {"above": 2, "source": "skip"},
    "2_v2": {"above": 2, "source": "encoder"},
    "2_v2_k3": {"above": 2, "source": "encoder", "kernel": 3},
    "2_v2_maxavg": {"above": 2, "source": "encoder", "pooling": "maxavg"},
    "od": _OD,
    "od_k3": {**_OD, "bottleneck_kernel": 3},
    "od_large": {**_OD, "width_factors": (2, 2, 4, 4, 8)},
    # Future work of the thesis (section 6): maps from below and equal widths. As in UNet 3+ the bottleneck is only a
    # source.
    "full": {"above": "all", "below": "all", "widths": 64},
    # A bridge over plain skips. A new network has the output of the plain one, and shows the effect of the bridge
    # alone.
    "bridge": {"above": 0, "bridge": BridgeConfig()},
}
