"""Section and builder of MONAI's U-Net with residual units."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from fusionseg.config.parts.sections import NetworkSection
from fusionseg.config.registry import networks
from fusionseg.config.section import Ints, Probability, Triple
from fusionseg.models.patch_sizes import multiple_problem
from fusionseg.models.unet.levels import at_least_two_levels

if TYPE_CHECKING:
    from torch import nn


@networks.register()
class MonaiUNetConfig(NetworkSection):
    """MONAI's UNet with residual units (Kerfoot et al., 2019, doi:10.1007/978-3-030-12029-0_40)."""

    name: Literal["monai_unet"]
    """MONAI's U-Net."""
    channels: Ints = (16, 32, 64, 128, 256)
    """Channels of each level, highest resolution first."""
    strides: Ints | None = None
    """Downsampling factors between the levels, one fewer than channels; null is 2 for all."""
    num_res_units: Annotated[int, Field(ge=0)] = 2
    """Convolutions in each residual unit; 0 for plain convolutions."""
    norm: Literal["instance", "batch"] = "instance"
    """Normalisation. Batch norm has statistics over the micro-batches of all ranks (synchronised, on GPUs and on CPUs).
    So it depends on micro_batch: with accumulation, the same global batch is another training."""
    dropout: Probability = 0.0
    """Probability that a value is dropped in training, after each convolution."""

    @field_validator("channels")
    @classmethod
    def _levels(cls, channels: tuple[int, ...]) -> tuple[int, ...]:
        return at_least_two_levels(channels)

    @model_validator(mode="after")
    def _strides_fit(self) -> MonaiUNetConfig:
        if self.strides is not None and (len(self.strides) != len(self.channels) - 1 or min(self.strides) < 1):
            raise ValueError(
                f"strides: expected {len(self.channels) - 1} integers from 1, one fewer than channels, got"
                f" {list(self.strides)}"
            )
        return self

    @property
    def level_strides(self) -> tuple[int, ...]:
        return self.strides or (2,) * (len(self.channels) - 1)

    def build(
        self, *, in_channels: int, out_channels: int, patch: Triple | None, checkpoint_activations: bool
    ) -> nn.Module:
        """Build the network with new weights; see `fusionseg.models.build_model`."""
        from monai.networks.nets.unet import UNet

        network: nn.Module = UNet(
            spatial_dims=3,
            in_channels=in_channels,
            out_channels=out_channels,
            channels=self.channels,
            strides=self.level_strides,
            num_res_units=self.num_res_units,
            norm=self.norm.upper(),
            dropout=self.dropout,
        )
        return network

    def patch_problem(self, patch: Triple) -> str | None:
        """Return the problem of training on patches of this size, with a remedy; None if there is none."""
        return multiple_problem(self.name, patch, prod(self.level_strides))
