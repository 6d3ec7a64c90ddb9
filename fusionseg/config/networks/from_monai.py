"""The `model` section of the networks that are MONAI's as they stand."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fusionseg.config.networks.base import NetworkSection, multiple_problem
from fusionseg.config.section import Ints, Probability


class SegResNetConfig(NetworkSection):
    """MONAI's SegResNet (Myronenko, 2018, arXiv:1810.11654), without the autoencoder branch."""

    name: Literal["segresnet"]
    """The SegResNet."""
    init_filters: Annotated[int, Field(ge=8, multiple_of=8)] = 16
    """Channels of the first level; a multiple of 8, the group norm's groups."""
    blocks_down: Ints = (1, 2, 2, 4)
    """Residual blocks per level of the encoder."""
    blocks_up: Ints = (1, 1, 1)
    """Residual blocks per level of the decoder, one fewer than blocks_down."""
    dropout: Probability = 0.0
    """Share of channels that are dropped in training."""

    @model_validator(mode="after")
    def _levels(self) -> SegResNetConfig:
        fewest = min(self.blocks_down + self.blocks_up, default=0)
        if len(self.blocks_up) != len(self.blocks_down) - 1 or fewest < 1:
            raise ValueError("blocks_up: needs one number fewer than blocks_down, all at least 1")
        return self

    def patch_problem(self, patch: tuple[int, int, int]) -> str | None:
        """Why this network cannot train on patches of this size, with the fix; None if it can."""
        return multiple_problem(self.name, patch, 2 ** (len(self.blocks_down) - 1))
