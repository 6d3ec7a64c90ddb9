"""Section and builder of Swin UNETR and Swin Fusion UNETR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from fusionseg.config.parts.sections import NetworkSection
from fusionseg.config.pretraining import PretrainConfig
from fusionseg.config.registry import networks
from fusionseg.config.section import Ints, Triple
from fusionseg.models.swin import PATCH_MULTIPLE
from fusionseg.models.swin.fusion_config import FUSION_PRESETS, FusionConfig

if TYPE_CHECKING:
    from fusionseg.models.masked.swin import MaskedSwin
    from fusionseg.models.swin.network import SwinFusionUNETR


@networks.register()
class SwinConfig(NetworkSection):
    """Swin UNETR (Hatamizadeh et al., 2022, arXiv:2201.01266) and its variants with fused skips."""

    can_checkpoint: ClassVar[bool] = True
    set_by_name: ClassVar[tuple[str, ...]] = ("fusion", "residual_stages")
    encoder: ClassVar[str | None] = "swinViT"
    encoder_layer: ClassVar[str] = r"layers\d\.0\.blocks\.\d+\."
    # A token of the first stage has 2 voxels along each axis. With mae a block is encoded on its own, down to 1/32.
    pretrain_methods: ClassVar[Mapping[str, int]] = {"blackout": 2, "token": 2, "mae": PATCH_MULTIPLE}

    name: Literal[
        "swin_unetr",
        "swin_unetr_v2",
        "swin_fusion_1_v1",
        "swin_fusion_2_v1",
        "swin_fusion_2_v2",
        "swin_fusion_2_v2_k3",
        "swin_fusion_2_v2_maxavg",
        "swin_fusion_od",
        "swin_fusion_od_k3",
        "swin_fusion_od_large",
        "swin_fusion_full",
        "swin_fusion_bridge",
    ]
    """Plain skips (swin_unetr; with residual stages, swin_unetr_v2), the thesis's variants with fused ones, full-scale
    skips as in UNet 3+ (swin_fusion_full), or plain skips with a context bridge as in MISSFormer
    (swin_fusion_bridge)."""
    feature_size: Annotated[int, Field(ge=12, multiple_of=12)] = 48
    """Channels of the first hidden state of the encoder; a multiple of 12."""
    depths: Annotated[tuple[int, int, int, int], Field(strict=False)] = (2, 2, 2, 2)
    """Transformer blocks of each stage."""
    num_heads: Annotated[tuple[int, int, int, int], Field(strict=False)] = (3, 6, 12, 24)
    """Attention heads of each stage."""
    window_size: Annotated[int, Field(ge=2)] = 7
    """Edge of an attention window in voxels, at the resolution of the stage. A stage is padded to whole windows: on
    small patches, a window that divides half of the patch costs a fraction of 7 (4 on a patch of 32)."""
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth rate of the last block; the rate rises linearly from 0 over the blocks."""
    residual_stages: bool = False
    """A residual block of convolutions before each transformer stage (Swin UNETR V2: He et al., MICCAI 2023). The name
    swin_unetr_v2 sets it; it can be set for every swin_fusion_* network."""
    checkpoint_stages: Annotated[Ints, Field(max_length=4)] = (1, 2, 3, 4)
    """Transformer stages that train.checkpoint_activations computes again in the backward pass."""
    fusion: FusionConfig | None = None
    """Fused skips. The name sets them; a key given here replaces that of the named variant."""

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

    @model_validator(mode="before")
    @classmethod
    def _fill_residual_stages(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("name") == "swin_unetr_v2":
            return {"residual_stages": True, **raw}
        return raw

    @model_validator(mode="after")
    def _stages_fit(self) -> SwinConfig:
        if self.name in ("swin_unetr", "swin_unetr_v2") and self.residual_stages != (self.name == "swin_unetr_v2"):
            other = "swin_unetr_v2" if self.residual_stages else "swin_unetr"
            raise ValueError(
                f"residual_stages: {self.name} cannot have {str(self.residual_stages).lower()}; remove the key, or use"
                f" {other}"
            )
        stages = list(self.checkpoint_stages)
        if stages != sorted(set(stages)) or not set(stages) <= {1, 2, 3, 4}:
            raise ValueError(f"checkpoint_stages: expected some of the stages 1 to 4 in rising order, got {stages}")
        return self

    @model_validator(mode="after")
    def _plain_has_no_fusion(self) -> SwinConfig:
        if self.name not in FUSION_PRESETS and self.fusion is not None:
            raise ValueError(f"fusion: {self.name} has plain skips; remove the key, or choose a swin_fusion_* name")
        for stage, heads in enumerate(self.num_heads):
            if heads < 1 or (self.feature_size * 2**stage) % heads:
                raise ValueError(
                    f"num_heads: {heads} does not divide the {self.feature_size * 2**stage} channels of stage"
                    f" {stage + 1}; choose a divisor, or another feature_size"
                )
        return self

    def build(
        self, *, in_channels: int, out_channels: int, patch: Triple | None, checkpoint_activations: bool
    ) -> SwinFusionUNETR:
        """Build the network with new weights; see `fusionseg.models.build_model`."""
        from fusionseg.models.swin.network import SwinFusionUNETR

        return SwinFusionUNETR(
            in_channels,
            out_channels,
            feature_size=self.feature_size,
            depths=self.depths,
            num_heads=self.num_heads,
            window_size=self.window_size,
            drop_path_rate=self.drop_path_rate,
            residual_stages=self.residual_stages,
            fusion=self.fusion,
            checkpoint_stages=self.checkpoint_stages if checkpoint_activations else (),
            checkpoint_fusion=checkpoint_activations,
        )

    def build_masked(
        self, pretrain: PretrainConfig, *, in_channels: int, patch: Triple, checkpoint_activations: bool
    ) -> MaskedSwin:
        """Build the encoder with new weights, and a decoder; see `fusionseg.models.masked.build_masked`."""
        from fusionseg.models.masked.swin import MaskedSwin

        # The whole network is built and its encoder taken, so that only `build` knows how it is built.
        network = self.build(
            in_channels=in_channels, out_channels=2, patch=patch, checkpoint_activations=checkpoint_activations
        )
        return MaskedSwin(network.swinViT, pretrain, feature_size=self.feature_size, channels=in_channels, patch=patch)

    def patch_problem(self, patch: Triple) -> str | None:
        """Return the problem of training on patches of this size, with a remedy; None if there is none."""
        if any(size % PATCH_MULTIPLE for size in patch) or max(patch) < 2 * PATCH_MULTIPLE:
            fixed = _multiples(patch)
            if max(fixed) < 2 * PATCH_MULTIPLE:
                fixed[patch.index(max(patch))] = 2 * PATCH_MULTIPLE
            return (
                f"data.patch: {self.name} needs multiples of 32, at least 64 in one axis (instance norm"
                f" needs more than one voxel at 1/32 of the resolution), not {list(patch)}: try {fixed}"
            )
        return None

    def encoder_patch_problem(self, patch: Triple) -> str | None:
        """Return the problem of pre-training the encoder, which has no instance norm at 1/32; None if there is none."""
        if any(size % PATCH_MULTIPLE for size in patch):
            return f"data.patch: {self.name} needs multiples of 32, not {list(patch)}: try {_multiples(patch)}"
        return None


def _multiples(patch: Triple) -> list[int]:
    """Return the nearest patch of multiples of 32."""
    return [max(PATCH_MULTIPLE, round(size / PATCH_MULTIPLE) * PATCH_MULTIPLE) for size in patch]
