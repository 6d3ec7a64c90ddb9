"""Section and builder of nnU-Net's residual-encoder U-Net, with plain or fused skips."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ValidationInfo, model_validator

from fusionseg.config.parts.sections import NetworkSection
from fusionseg.config.pretraining import PretrainConfig
from fusionseg.config.registry import networks
from fusionseg.config.section import Ints, Positive, Triple
from fusionseg.models.fusion.settings import FusionSettings
from fusionseg.models.patch_sizes import axes_problem
from fusionseg.models.per_level import PerLevel, levels_problem, per_axis
from fusionseg.models.resenc.fusion_config import FUSION_PRESETS, preset
from fusionseg.models.unet.levels import with_possible_heads

if TYPE_CHECKING:
    from fusionseg.models.masked.resenc import MaskedResEncUNet
    from fusionseg.models.resenc.network import ResEncUNet

_BLOCKS = (1, 3, 4, 6)  # of the first levels; all further levels have the last number


@networks.register()
class ResEncConfig(NetworkSection):
    """nnU-Net's residual-encoder U-Net (Isensee et al., 2024, arXiv:2404.09556) and variants with fused skips.

    nnU-Net's presets M, L and XL are this network with patches for 8, 24 and 40 GB of memory.
    """

    can_checkpoint: ClassVar[bool] = True
    set_by_name: ClassVar[tuple[str, ...]] = ("fusion",)
    encoder: ClassVar[str | None] = "encoder"
    encoder_layer: ClassVar[str] = r"stages\.\d+\."
    pretrain_methods: ClassVar[Mapping[str, int]] = {"blackout": 1}
    pretrains_decoder: ClassVar[bool] = True
    fewest_levels_with_heads: ClassVar[int] = 4

    name: Literal["resenc_unet", "resenc_fusion_2_v2", "resenc_fusion_od"]
    """Plain skips (resenc_unet), or those of Swin Fusion UNETR: two stages above, or all stages above and the
    bottleneck."""
    channels: Ints = (32, 64, 128, 256, 320, 320)
    """Channels of each level, highest resolution first; at least three levels."""
    blocks: Ints | None = None
    """Residual blocks of each level of the encoder; null is nnU-Net's 1, 3, 4, 6, 6, ..."""
    kernels: PerLevel | None = None
    """Kernel of each level, odd; null is 3 for all. Example for thick slices: [[3, 3, 1], 3, 3]."""
    strides: PerLevel | None = None
    """Downsampling factors between the levels, 1 or 2, one entry fewer than channels; null is 2 for all. Example for
    thick slices: [[2, 2, 1], 2]."""
    decoder_convs: Positive = 1
    """Convolutions of each level of the decoder."""
    deep_supervision: bool = True
    """Heads at lower resolutions too, except the two lowest as in nnU-Net; only the loss uses them. It needs four
    levels."""
    fusion: FusionSettings | None = None
    """Fused skips. The name sets them; a key given here replaces that of the named variant. Stage 1 is the first level,
    the last stage is the bottleneck."""

    @model_validator(mode="before")
    @classmethod
    def _fill_fusion(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or raw.get("name") not in FUSION_PRESETS:
            return raw
        given, channels = raw.get("fusion") or {}, raw.get("channels", cls.model_fields["channels"].default)
        if not isinstance(given, dict) or not isinstance(channels, list | tuple):
            return raw
        return {**raw, "fusion": {**preset(raw["name"], len(channels)), **given}}

    @model_validator(mode="after")
    def _levels_fit(self) -> ResEncConfig:
        if problem := levels_problem(self.channels, self.level_kernels, self.level_strides, "channels"):
            raise ValueError(problem)
        levels = len(self.channels)
        if len(self.level_blocks) != levels or min(self.level_blocks) < 1:
            raise ValueError(
                f"blocks: expected {levels} integers from 1, one for each of the channels, got"
                f" {list(self.level_blocks)}"
            )
        return self

    @model_validator(mode="after")
    def _heads_fit(self, info: ValidationInfo) -> ResEncConfig:
        return with_possible_heads(self, info, "channels")

    @model_validator(mode="after")
    def _fusion_fits(self) -> ResEncConfig:
        if self.fusion is None:
            return self
        if self.name not in FUSION_PRESETS:
            raise ValueError(f"fusion: {self.name} has plain skips; remove the key, or choose a resenc_fusion_* name")
        if problem := self.fusion.stages_problem(len(self.channels)):
            raise ValueError(f"fusion.{problem}")
        return self

    @property
    def level_blocks(self) -> tuple[int, ...]:
        """Residual blocks of each level of the encoder."""
        if self.blocks is not None:
            return self.blocks
        return tuple(_BLOCKS[min(level, len(_BLOCKS) - 1)] for level in range(len(self.channels)))

    @property
    def level_kernels(self) -> tuple[Triple, ...]:
        """Kernel of each level along each axis."""
        return per_axis(self.kernels or (3,) * len(self.channels))

    @property
    def level_strides(self) -> tuple[Triple, ...]:
        """Downsampling factors between the levels along each axis."""
        return per_axis(self.strides or (2,) * (len(self.channels) - 1))

    def build(
        self, *, in_channels: int, out_channels: int, patch: Triple | None, checkpoint_activations: bool
    ) -> ResEncUNet:
        """Build the network with new weights; see `fusionseg.models.build_model`."""
        return self._build(in_channels, out_channels, self.deep_supervision, checkpoint_activations)

    def build_masked(
        self, pretrain: PretrainConfig, *, in_channels: int, patch: Triple, checkpoint_activations: bool
    ) -> MaskedResEncUNet:
        """Build the network of masked pre-training with new weights; see `fusionseg.models.masked.build_masked`."""
        from fusionseg.models.masked.resenc import MaskedResEncUNet

        network = self._build(in_channels, in_channels, False, checkpoint_activations)
        return MaskedResEncUNet(network, pretrain, self.channels)

    def _build(
        self, in_channels: int, out_channels: int, deep_supervision: bool, checkpoint_activations: bool
    ) -> ResEncUNet:
        from fusionseg.models.resenc.network import ResEncUNet

        return ResEncUNet(
            in_channels,
            out_channels,
            channels=self.channels,
            blocks=self.level_blocks,
            kernels=self.level_kernels,
            strides=self.level_strides,
            decoder_convs=self.decoder_convs,
            deep_supervision=deep_supervision,
            fusion=self.fusion,
            use_checkpoint=checkpoint_activations,
        )

    def patch_problem(self, patch: Triple) -> str | None:
        """Return the problem of training on patches of this size, with a remedy; None if there is none."""
        x, y, z = (prod(steps) for steps in zip(*self.level_strides, strict=True))
        return axes_problem(self.name, patch, (x, y, z), least=2)
