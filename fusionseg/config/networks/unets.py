"""The `model` section of the U-Nets."""

from __future__ import annotations

from math import prod
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from fusionseg.config.networks.base import NetworkSection, multiple_problem
from fusionseg.config.section import Ints, Probability


class UNetConfig(NetworkSection):
    """MONAI's UNet with residual units (Kerfoot et al., 2019, doi:10.1007/978-3-030-12029-0_40)."""

    name: Literal["unet"]
    """The U-Net."""
    channels: Ints = (16, 32, 64, 128, 256)
    """Channels per level, from the top."""
    strides: Ints | None = None
    """Downsampling between the levels, one fewer than channels; null is 2 everywhere."""
    num_res_units: Annotated[int, Field(ge=0)] = 2
    """Convolutions in each residual unit; 0 for plain convolutions."""
    norm: Literal["instance", "batch"] = "instance"
    """Normalisation; batch norm makes the training depend on the micro-batch and so on the topology."""
    dropout: Probability = 0.0
    """Share of channels that are dropped in training."""

    @field_validator("channels")
    @classmethod
    def _levels(cls, channels: tuple[int, ...]) -> tuple[int, ...]:
        if len(channels) < 2 or min(channels) < 1:
            raise ValueError(f"needs at least two levels of at least one channel, and has {list(channels)}")
        return channels

    @model_validator(mode="after")
    def _strides_fit(self) -> UNetConfig:
        if self.strides is not None and (len(self.strides) != len(self.channels) - 1 or min(self.strides) < 1):
            raise ValueError(
                f"strides: needs {len(self.channels) - 1} numbers from 1, one fewer than channels, and has"
                f" {list(self.strides)}"
            )
        return self

    @property
    def level_strides(self) -> tuple[int, ...]:
        return self.strides or (2,) * (len(self.channels) - 1)

    def patch_problem(self, patch: tuple[int, int, int]) -> str | None:
        """Why this network cannot train on patches of this size, with the fix; None if it can."""
        return multiple_problem(self.name, patch, prod(self.level_strides))
