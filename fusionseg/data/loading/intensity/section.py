"""The base of the sections of `augment` that change intensities. Each of them is the augmentation too."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from fusionseg.config.section import Probability, SectionWithOptions

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from fusionseg.data.loading.augmentation_protocol import Drawn


class IntensitySection(SectionWithOptions):
    """An augmentation of the image: its keys in the configuration, its plan part and its device part.

    The label stays as it is. An object keeps no state, and a sample is changed by its own numbers alone.
    """

    order: ClassVar[int]
    """Place among the intensity augmentations: they are applied by rising order."""
    purpose: ClassVar[int | None] = None
    """Purpose of the random numbers (`purposes`); None for one that follows from the registered name."""

    prob: Probability
    """Probability that a sample is changed."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, channels: int) -> Mapping[str, Any]:
        """Draw the random numbers of a sample that is changed.

        Args:
            rng: a generator that belongs to this sample and this augmentation.
            channels: channels of the image.

        Returns:
            Numbers, or arrays of the same shape for every sample, by name.
        """

    @abstractmethod
    def apply(self, image: Tensor, drawn: Drawn) -> Tensor:
        """Change the images of neighbouring samples; nothing waits for the device.

        Args:
            image: (B, C, X, Y, Z) float32, on the training device; may be changed in place.
            drawn: the numbers that were drawn for these samples.

        Returns:
            The images in the same shape.
        """
