"""Gaussian noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from fusionseg.config.registry import augmentations
from fusionseg.config.section import Probability
from fusionseg.data.loading.intensity.section import ImageLayout, IntensitySection
from fusionseg.data.loading.purposes import Purpose

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from fusionseg.data.loading.augmentation_protocol import Drawn


@augmentations.register("noise")
class NoiseConfig(IntensitySection):
    """Add Gaussian noise."""

    order: ClassVar[int] = 30
    purpose: ClassVar[int] = Purpose.NOISE

    prob: Probability = 0.1
    """Probability that a sample is changed."""
    std: Annotated[float, Field(ge=0)] = 0.05
    """Highest standard deviation; each sample draws its own from [0, std]."""

    def draw(self, rng: np.random.Generator, layout: ImageLayout) -> dict[str, float | int]:
        """Draw the standard deviation, and the 32-bit key of the noise."""
        return {"std": self.std * rng.random(), "key": int(rng.random() * 2**32)}

    def apply(self, image: Tensor, drawn: Drawn) -> Tensor:
        """Add to each image (C, X, Y, Z) its noise. One image after the other, which bounds the memory."""
        from fusionseg.data.loading.counter_random import counter_normal

        keys = drawn["key"]
        for i, std in enumerate(drawn.host["std"]):
            noise = counter_normal(keys[i : i + 1], image[i].numel()).view_as(image[i])
            image[i].add_(noise, alpha=float(std))
        return image
