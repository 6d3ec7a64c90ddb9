"""The `model` section of the Swin networks, and their fused skips."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from fusionseg.config.networks.base import NetworkSection
from fusionseg.config.section import Ints, Section

SWIN_PATCH_MULTIPLE = 32  # patch embedding (2) and four mergings (2 each)


class FusionConfig(Section):
    """Fused skip connections (A. Dhar, "Swin Fusion UNETR", 2023, section 4.3).

    Stage 1 is the input, stages 2 to 6 are the hidden states of the Swin encoder, 1/2 to 1/32 of the
    resolution.
    At every stage from 2 to `last_stage` the stage's own map is concatenated with maps of the stages above
    it, pooled down to its resolution, and a residual block makes the final skip connection of the result.
    """

    above: Annotated[int, Field(ge=1, le=5)] | Literal["all"] = "all"
    """How many of the stages directly above are fused (fewer where there are fewer)."""
    source: Literal["skip", "encoder"] = "encoder"
    """What is pooled: `skip` (the thesis's v1) the residual block's output that also goes to that stage's own
    decoder; `encoder` (v2) the encoder's map through a separate residual block made for this purpose."""
    pooling: Literal["max", "avg", "maxavg"] = "max"
    """Pooling to the lower resolution; `maxavg` concatenates both."""
    kernel: Literal[1, 3] = 1
    """Kernel of the final residual block of stages 2 to 5."""
    last_stage: Literal[5, 6] = 5
    """The lowest stage that is fused: 5, or 6 for the bottleneck too ("overdrive")."""
    bottleneck_kernel: Literal[1, 3] = 1
    """Kernel of the bottleneck's residual block when `last_stage` is 6 (it replaces the plain network's)."""
    widths: Ints | None = None
    """Channels of the pooled maps of stages 1 to `last_stage` - 1; null leaves them as the encoder gives
    them. Only with `source: encoder`."""

    @model_validator(mode="after")
    def _widths_fit(self) -> FusionConfig:
        if self.widths is not None:
            if self.source == "skip":
                raise ValueError("widths: need source: encoder (a v1 skip is the decoder's own and keeps its width)")
            if len(self.widths) != self.last_stage - 1 or min(self.widths) < 1:
                raise ValueError(
                    f"widths: needs {self.last_stage - 1} positive numbers, one for each of the stages 1 to"
                    f" {self.last_stage - 1}, and has {list(self.widths)}"
                )
        return self


# The thesis's variants (section 4.4 and Table 2). Widths are multiples of the feature size.
_OD: dict[str, Any] = {"above": "all", "source": "encoder", "last_stage": 6}
FUSION_PRESETS: dict[str, dict[str, Any]] = {
    "swin_fusion_1_v1": {"above": 1, "source": "skip"},
    "swin_fusion_2_v1": {"above": 2, "source": "skip"},
    "swin_fusion_2_v2": {"above": 2, "source": "encoder"},
    "swin_fusion_2_v2_k3": {"above": 2, "source": "encoder", "kernel": 3},
    "swin_fusion_od": _OD,
    "swin_fusion_od_k3": {**_OD, "bottleneck_kernel": 3},
    "swin_fusion_od_large": {**_OD, "width_factors": (2, 2, 4, 4, 8)},
}


class SwinConfig(NetworkSection):
    """Swin UNETR (Hatamizadeh et al., 2022, arXiv:2201.01266) and its variants with fused skips."""

    can_checkpoint: ClassVar[bool] = True

    name: Literal[
        "swin_unetr",
        "swin_fusion_1_v1",
        "swin_fusion_2_v1",
        "swin_fusion_2_v2",
        "swin_fusion_2_v2_k3",
        "swin_fusion_od",
        "swin_fusion_od_k3",
        "swin_fusion_od_large",
    ]
    """Plain skips (swin_unetr) or one of the thesis's variants with fused ones."""
    feature_size: Annotated[int, Field(ge=12, multiple_of=12)] = 48
    """Channels of the first encoder stage; a multiple of 12."""
    depths: Annotated[tuple[int, int, int, int], Field(strict=False)] = (2, 2, 2, 2)
    """Swin transformer blocks per stage."""
    num_heads: Annotated[tuple[int, int, int, int], Field(strict=False)] = (3, 6, 12, 24)
    """Attention heads per stage."""
    window_size: Annotated[int, Field(ge=2)] = 7
    """Voxels of an attention window in each axis, at the stage's own resolution. A stage is padded to whole
    windows: on small patches a window that divides their half costs a fraction of 7 (4 on a patch of 32)."""
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth."""
    fusion: FusionConfig | None = None
    """The fused skips. The name sets them; a key given here replaces that part of the named variant."""

    @model_validator(mode="before")
    @classmethod
    def _fill_fusion(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or raw.get("name") not in FUSION_PRESETS:
            return raw
        given = raw.get("fusion") or {}
        if not isinstance(given, dict):
            return raw
        preset = dict(FUSION_PRESETS[raw["name"]])
        factors = preset.pop("width_factors", None)
        size = raw.get("feature_size", cls.model_fields["feature_size"].default)
        if factors and isinstance(size, int):
            preset["widths"] = [factor * size for factor in factors]
        return {**raw, "fusion": {**preset, **given}}

    @model_validator(mode="after")
    def _plain_has_no_fusion(self) -> SwinConfig:
        if self.name == "swin_unetr" and self.fusion is not None:
            raise ValueError("fusion: swin_unetr has plain skips: remove it, or choose a swin_fusion_* name to change")
        for stage, heads in enumerate(self.num_heads):
            if heads < 1 or (self.feature_size * 2**stage) % heads:
                raise ValueError(
                    f"num_heads: {heads} does not divide the {self.feature_size * 2**stage} channels of stage"
                    f" {stage + 1}: choose a divisor, or another feature_size"
                )
        return self

    def patch_problem(self, patch: tuple[int, int, int]) -> str | None:
        """Why this network cannot train on patches of this size, with the fix; None if it can."""
        if any(size % SWIN_PATCH_MULTIPLE for size in patch) or max(patch) < 2 * SWIN_PATCH_MULTIPLE:
            fixed = [max(SWIN_PATCH_MULTIPLE, round(size / 32) * 32) for size in patch]
            if max(fixed) < 2 * SWIN_PATCH_MULTIPLE:
                fixed[patch.index(max(patch))] = 2 * SWIN_PATCH_MULTIPLE
            return (
                f"data.patch: {self.name} needs multiples of 32, at least 64 in one axis (instance norm"
                f" needs more than one voxel at 1/32 of the resolution), not {list(patch)}: try {fixed}"
            )
        return None
