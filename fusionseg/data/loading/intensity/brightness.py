"""Brightness: one value is added to a patch, or one factor multiplies it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from fusionseg.config.registry import augmentations
from fusionseg.config.section import Probability
from fusionseg.data.loading.intensity.section import ImageLayout, LinearIntensitySection, of_all, per_channel
from fusionseg.data.loading.purposes import Purpose

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from fusionseg.data.loading.augmentation_protocol import Drawn, Draws


@augmentations.register("shift_intensity")
class ShiftIntensityConfig(LinearIntensitySection):
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

    def linear(self, draws: Draws, shape: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The factor 1 and the values; 0 for a sample that is not changed."""
        import numpy as np

        offset = of_all(draws, "offset", 0.0, shape)[:, :, 0, 0, 0]
        return np.ones_like(offset), offset


@augmentations.register("scale_intensity")
class ScaleIntensityConfig(LinearIntensitySection):
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

    def linear(self, draws: Draws, shape: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The factors, 1 for a sample that is not changed, and the offset 0."""
        import numpy as np

        factor = of_all(draws, "factor", 1.0, shape)[:, :, 0, 0, 0]
        return factor, np.zeros_like(factor)
