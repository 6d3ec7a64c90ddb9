"""Contrast: the distances of the intensities from their mean are multiplied by one factor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from fusionseg.config.registry import augmentations
from fusionseg.config.section import Probability
from fusionseg.data.loading.intensity.section import (
    BatchedIntensitySection,
    ImageLayout,
    PositiveRange,
    draw_around_one,
    of_all,
    per_channel,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from fusionseg.data.loading.augmentation_protocol import Drawn, Draws


@augmentations.register("contrast")
class ContrastConfig(BatchedIntensitySection):
    """Multiply the distances from the mean of the patch by a random factor."""

    order: ClassVar[int] = 50

    prob: Probability = 0.15
    """Probability that a sample is changed."""
    factor: PositiveRange = (0.75, 1.25)
    """Lowest and highest factor; it is drawn with equal chance below and above 1."""
    preserve_range: bool = True
    """Clip the result to the lowest and the highest value that the patch had."""
    per_channel: bool = True
    """Draw a factor for each channel, instead of one for all of them."""

    def draw(self, rng: np.random.Generator, layout: ImageLayout) -> dict[str, Any]:
        """Draw the factors."""
        return {"factor": draw_around_one(rng, self.factor, layout.channels if self.per_channel else 1)}

    def apply(self, image: Tensor, drawn: Drawn) -> Tensor:
        """Change each channel (X, Y, Z) about its own mean."""
        import torch

        from fusionseg.data.loading.channel_statistics import channel_mean, channel_range

        factor = per_channel(drawn["factor"])
        offset = channel_mean(image) * (1 - factor)
        lowest, highest = channel_range(image)
        image.mul_(factor).add_(offset)
        if self.preserve_range:
            torch.maximum(image, lowest, out=image)
            torch.minimum(image, highest, out=image)
        return image

    def arrays(self, draws: Draws, shape: Sequence[int]) -> dict[str, NDArray[Any]]:
        """The factors; 1 for a sample that is not changed."""
        return {"factor": of_all(draws, "factor", 1.0, shape)}

    def apply_to_all(self, image: Tensor, sent: Mapping[str, Tensor]) -> Tensor:
        """Change each channel (X, Y, Z) about its own mean; a factor of 1 changes no bit."""
        import torch

        mean = image.mean((2, 3, 4), keepdim=True)
        if not self.preserve_range:
            return torch.lerp(mean, image, sent["factor"])
        lowest, highest = (edge.view_as(mean) for edge in torch.aminmax(image.flatten(2), dim=2))
        return torch.lerp(mean, image, sent["factor"]).clamp_(lowest, highest)
