"""Brightness: one value is added to a patch, or one factor multiplies it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from fusionseg.config.registry import augmentations
from fusionseg.config.section import Probability
from fusionseg.data.loading.intensity.section import BatchedIntensitySection, ImageLayout, of_all, per_channel
from fusionseg.data.loading.purposes import Purpose

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from fusionseg.data.loading.augmentation_protocol import Drawn, Draws


@augmentations.register("shift_intensity")
class ShiftIntensityConfig(BatchedIntensitySection):
    """Add one random value to the whole patch."""

    order: ClassVar[int] = 20
    purpose: ClassVar[int] = Purpose.SHIFT

    prob: Probability = 0.5
    """Probability that a sample is changed."""
    offset: Annotated[float, Field(ge=0)] = 0.1
    """The value is drawn uniformly from [-offset, offset], in units of the prepared image."""

    def draw(self, rng: np.random.Generator, layout: ImageLayout) -> dict[str, float]:
        """Draw the value."""
        return {"offset": self.offset * (2 * rng.random() - 1)}

    def apply(self, image: Tensor, drawn: Drawn) -> Tensor:
        """Add to each image (C, X, Y, Z) its value."""
        return image.add_(drawn["offset"].view(-1, 1, 1, 1, 1))

    def arrays(self, draws: Draws, shape: Sequence[int]) -> dict[str, NDArray[Any]]:
        """The values; 0 for a sample that is not changed."""
        return {"offset": of_all(draws, "offset", 0.0, shape)}

    def apply_to_all(self, image: Tensor, sent: Mapping[str, Tensor]) -> Tensor:
        """Add to each image (C, X, Y, Z) its value."""
        return image.add_(sent["offset"])


@augmentations.register("scale_intensity")
class ScaleIntensityConfig(BatchedIntensitySection):
    """Multiply the whole patch by one random factor."""

    left_out: ClassVar[tuple[str, ...]] = ("per_channel",)
    order: ClassVar[int] = 10
    purpose: ClassVar[int] = Purpose.SCALE_INTENSITY

    prob: Probability = 0.5
    """Probability that a sample is changed."""
    factor: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """The factor is drawn uniformly from [1 - factor, 1 + factor]."""
    per_channel: bool = False
    """Draw a factor for each channel, instead of one for all of them."""

    def draw(self, rng: np.random.Generator, layout: ImageLayout) -> dict[str, Any]:
        """Draw the factor."""
        return {"factor": 1 + self.factor * (2 * rng.random(layout.channels if self.per_channel else None) - 1)}

    def apply(self, image: Tensor, drawn: Drawn) -> Tensor:
        """Multiply each image (C, X, Y, Z) by its factor."""
        return image.mul_(per_channel(drawn["factor"]))

    def arrays(self, draws: Draws, shape: Sequence[int]) -> dict[str, NDArray[Any]]:
        """The factors; 1 for a sample that is not changed."""
        return {"factor": of_all(draws, "factor", 1.0, shape)}

    def apply_to_all(self, image: Tensor, sent: Mapping[str, Tensor]) -> Tensor:
        """Multiply each image (C, X, Y, Z) by its factor."""
        return image.mul_(sent["factor"])
