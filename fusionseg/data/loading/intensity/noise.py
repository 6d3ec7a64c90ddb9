"""Gaussian noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from fusionseg.config.registry import augmentations
from fusionseg.config.section import Probability
from fusionseg.data.loading.intensity.section import BatchedIntensitySection, ImageLayout, of_all
from fusionseg.data.loading.purposes import Purpose

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from fusionseg.data.loading.augmentation_protocol import Drawn, Draws


@augmentations.register("noise")
class NoiseConfig(BatchedIntensitySection):
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
        import torch

        from fusionseg.data.loading.noise_lines import line_places, noise_of_lines, normal_table

        table = torch.from_numpy(normal_table())
        for i, (std, key) in enumerate(zip(drawn.host["std"], drawn.host["key"], strict=True)):
            places = torch.from_numpy(line_places(int(key), image[i].numel()))
            image[i].add_(noise_of_lines(table, places[None], image[i : i + 1].shape)[0], alpha=float(std))
        return image

    def constants(self) -> dict[str, NDArray[Any]]:
        """The table of normal numbers."""
        from fusionseg.data.loading.noise_lines import normal_table

        return {"table": normal_table()}

    def arrays(self, draws: Draws, shape: Sequence[int]) -> dict[str, NDArray[Any]]:
        """The deviations (B,), 0 without noise, and the places of the lines of noise in the table (B, lines)."""
        import numpy as np

        from fusionseg.data.loading.noise_lines import LINE, line_places

        count = math.prod(shape[1:])
        places = np.zeros((shape[0], -(-count // LINE)), np.int32)
        for i, key in zip(np.flatnonzero(draws.hit), draws.values["key"], strict=True):
            places[i] = line_places(int(key), count)
        return {"std": of_all(draws, "std", 0.0, shape), "places": places}

    def apply_to_all(self, image: Tensor, sent: Mapping[str, Tensor]) -> Tensor:
        """Add to each image (C, X, Y, Z) its noise."""
        from fusionseg.data.loading.noise_lines import noise_of_lines

        return image.addcmul_(noise_of_lines(sent["table"], sent["places"], image.shape), sent["std"])
