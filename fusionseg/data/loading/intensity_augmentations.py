"""The built-in augmentations of intensities, in the order in which they are applied."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from fusionseg.config.data.augmentation import NoiseConfig, ScaleIntensityConfig, ShiftIntensityConfig
from fusionseg.config.registry import augmentations
from fusionseg.data.loading.augmentation_protocol import Drawn
from fusionseg.data.loading.counter_random import Purpose, counter_normal


@augmentations.register("scale_intensity")
class ScaleIntensity:
    """Multiply a patch by one factor."""

    purpose = Purpose.SCALE_INTENSITY

    def __init__(self, config: ScaleIntensityConfig) -> None:
        self.factor = config.factor

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """Draw the factor."""
        return {"factor": 1 + self.factor * (2 * rng.random() - 1)}

    def apply(self, image: Tensor, label: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Multiply each image (C, X, Y, Z) by its factor."""
        return image.mul_(drawn["factor"].view(-1, 1, 1, 1, 1)), label


@augmentations.register("shift_intensity")
class ShiftIntensity:
    """Add one value to a patch."""

    purpose = Purpose.SHIFT

    def __init__(self, config: ShiftIntensityConfig) -> None:
        self.offset = config.offset

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """Draw the value."""
        return {"offset": self.offset * (2 * rng.random() - 1)}

    def apply(self, image: Tensor, label: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Add to each image (C, X, Y, Z) its value."""
        return image.add_(drawn["offset"].view(-1, 1, 1, 1, 1)), label


@augmentations.register("noise")
class GaussianNoise:
    """Add Gaussian noise to a patch."""

    purpose = Purpose.NOISE

    def __init__(self, config: NoiseConfig) -> None:
        self.std = config.std

    def draw(self, rng: np.random.Generator) -> dict[str, float | int]:
        """Draw the standard deviation, and the 32-bit key of the noise."""
        return {"std": self.std * rng.random(), "key": int(rng.random() * 2**32)}

    def apply(self, image: Tensor, label: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Add to each image (C, X, Y, Z) its noise. One image after the other, which bounds the memory."""
        keys = drawn["key"]
        for i, std in enumerate(drawn.host["std"]):
            noise = counter_normal(keys[i : i + 1], image[i].numel()).view_as(image[i])
            image[i].add_(noise, alpha=float(std))
        return image, label
