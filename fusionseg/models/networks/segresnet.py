"""Sections and builders of MONAI's SegResNet, without and with deep supervision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from fusionseg.config.parts.sections import NetworkSection
from fusionseg.config.registry import networks
from fusionseg.config.section import Ints, Positive, Probability, Triple
from fusionseg.models.patch_sizes import multiple_problem
from fusionseg.models.unet.levels import with_possible_heads

if TYPE_CHECKING:
    from torch import nn


@networks.register()
class SegResNetConfig(NetworkSection):
    """MONAI's SegResNet (Myronenko, 2018, arXiv:1810.11654), without the autoencoder branch."""

    name: Literal["segresnet"]
    """The SegResNet."""
    init_filters: Annotated[int, Field(ge=8, multiple_of=8)] = 16
    """Channels of the first level; a multiple of 8, the group norm's groups."""
    blocks_down: Ints = (1, 2, 2, 4)
    """Residual blocks of each level of the encoder."""
    blocks_up: Ints = (1, 1, 1)
    """Residual blocks of each level of the decoder, one entry fewer than blocks_down."""
    dropout: Probability = 0.0
    """Probability that a channel is dropped in training."""

    @model_validator(mode="after")
    def _levels(self) -> SegResNetConfig:
        fewest = min(self.blocks_down + self.blocks_up, default=0)
        if len(self.blocks_up) != len(self.blocks_down) - 1 or fewest < 1:
            raise ValueError("blocks_up: expected one number fewer than blocks_down, and all of both at least 1")
        return self

    def build(
        self, *, in_channels: int, out_channels: int, patch: Triple | None, checkpoint_activations: bool
    ) -> nn.Module:
        """Build the network with new weights; see `fusionseg.models.build_model`."""
        from monai.networks.nets.segresnet import SegResNet

        network: nn.Module = SegResNet(
            spatial_dims=3,
            in_channels=in_channels,
            out_channels=out_channels,
            init_filters=self.init_filters,
            dropout_prob=self.dropout or None,  # None: no dropout layer
            blocks_down=self.blocks_down,
            blocks_up=self.blocks_up,
        )
        return network

    def patch_problem(self, patch: Triple) -> str | None:
        """Return the problem of training on patches of this size, with a remedy; None if there is none."""
        return multiple_problem(self.name, patch, 2 ** (len(self.blocks_down) - 1))


@networks.register()
class SegResNetDSConfig(NetworkSection):
    """MONAI's SegResNet with heads at all resolutions of its decoder (Myronenko, 2018, arXiv:1810.11654; the
    form that Auto3DSeg trains). One residual block per level of the decoder; no dropout."""

    encoder: ClassVar[str | None] = "encoder"
    encoder_layer: ClassVar[str] = r"layers\.\d+\."
    fewest_levels_with_heads: ClassVar[int] = 3

    name: Literal["segresnet_ds"]
    """The SegResNet with deep supervision."""
    init_filters: Positive = 32
    """Channels of the first level; each level doubles them."""
    blocks_down: Ints = (1, 2, 2, 4)
    """Residual blocks of each level of the encoder."""
    norm: Literal["instance", "batch"] = "instance"
    """Normalisation. Batch norm has statistics over the micro-batches of all ranks. So it depends on micro_batch:
    with accumulation, the same global batch is another training."""
    deep_supervision: bool = True
    """Heads at the lower resolutions of the decoder too; only the loss uses them. It needs three levels."""

    @field_validator("blocks_down")
    @classmethod
    def _levels(cls, blocks: tuple[int, ...]) -> tuple[int, ...]:
        if len(blocks) < 2 or min(blocks) < 1:
            raise ValueError(f"expected at least two levels of at least one block, got {list(blocks)}")
        return blocks

    @model_validator(mode="after")
    def _heads_fit(self, info: ValidationInfo) -> SegResNetDSConfig:
        return with_possible_heads(self, info, "blocks_down")

    def build(
        self, *, in_channels: int, out_channels: int, patch: Triple | None, checkpoint_activations: bool
    ) -> nn.Module:
        """Build the network with new weights; see `fusionseg.models.build_model`."""
        from monai.networks.nets.segresnet_ds import SegResNetDS

        network: nn.Module = SegResNetDS(
            spatial_dims=3,
            in_channels=in_channels,
            out_channels=out_channels,
            init_filters=self.init_filters,
            blocks_down=self.blocks_down,
            norm=self.norm,
            dsdepth=len(self.blocks_down) - 1 if self.deep_supervision else 1,
        )
        return network

    def patch_problem(self, patch: Triple) -> str | None:
        """Return the problem of training on patches of this size, with a remedy; None if there is none."""
        return multiple_problem(self.name, patch, 2 ** (len(self.blocks_down) - 1))
