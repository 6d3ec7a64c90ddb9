"""Configuration of the fused skip connections of Swin UNETR: keys under `model.fusion`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fusionseg.models.fusion.settings import VARIANTS, FusionSettings

NUM_STAGES = 6
"""The input, and the five hidden states of the encoder."""


class FusionConfig(FusionSettings):
    """Fused skip connections (A. Dhar, "Swin Fusion UNETR", 2023, section 4.3).

    Stage 1 is the input; stages 2 to 6 are the hidden states of the Swin encoder at 1/2 to 1/32 of the resolution. The
    own map of a fused stage is concatenated with maps of stages above it, pooled to its resolution, and of stages below
    it, up-sampled to its resolution (full-scale skips as in UNet 3+: Huang et al., 2020, arXiv:2004.08790). A residual
    block then computes the skip connection.
    """

    above: Annotated[int, Field(ge=0, le=5)] | Literal["all"] = "all"
    """Number of stages directly above that are fused (fewer if there are fewer)."""
    below: Annotated[int, Field(ge=0, le=5)] | Literal["all"] = 0
    """Number of stages directly below that are fused; the bottleneck is the last one for any `last_stage`. Their maps
    are up-sampled (trilinear). Stage 1 is then fused too, which takes much memory at full resolution."""
    last_stage: Literal[5, 6] = 5
    """Lowest stage that is fused: 5, or 6 for the bottleneck too ("overdrive" in the thesis)."""
    bottleneck_kernel: Literal[1, 3] = 1
    """Kernel of the residual block of the bottleneck if `last_stage` is 6; it replaces that of the plain network."""

    @property
    def fusion_sources(self) -> dict[int, tuple[int, ...]]:
        """Fused stage -> its fusion sources, highest resolution first."""
        return self.sources_of(NUM_STAGES)

    @model_validator(mode="after")
    def _stages_fit(self) -> FusionConfig:
        if problem := self.stages_problem(NUM_STAGES):
            raise ValueError(problem)
        return self


FUSION_PRESETS: dict[str, dict[str, Any]] = {f"swin_fusion_{name}": settings for name, settings in VARIANTS.items()}
