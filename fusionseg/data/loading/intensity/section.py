"""The base of the sections of `augment` that change intensities. Each of them is the augmentation too."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator

from fusionseg.config.section import Pair, Probability, SectionWithOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from fusionseg.data.loading.augmentation_protocol import Drawn, Draws


@dataclass(frozen=True)
class ImageLayout:
    """The properties of all images of a run that a draw may need."""

    channels: int = 1
    through_plane: int | None = None
    """The axis that `augment.axes` leaves alone; None if there is none."""


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
    def draw(self, rng: np.random.Generator, layout: ImageLayout) -> Mapping[str, Any]:
        """Draw the random numbers of a sample that is changed.

        Args:
            rng: a generator that belongs to this sample and this augmentation.
            layout: of the images.

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


class BatchedIntensitySection(IntensitySection):
    """An augmentation of the image that can also change all samples of a batch by the same few operators."""

    def constants(self) -> dict[str, NDArray[Any]]:
        """Arrays by name that `apply_to_all` needs for every batch; they are sent to the device once."""
        return {}

    @abstractmethod
    def arrays(self, draws: Draws, shape: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Compute on the host what `apply_to_all` needs on the device.

        Args:
            draws: of all samples of a batch, at least one of which is changed.
            shape: (5,), of the images.

        Returns:
            Arrays by name. Those of a sample that is not changed have values with which nothing changes.
        """

    @abstractmethod
    def apply_to_all(self, image: Tensor, sent: Mapping[str, Tensor]) -> Tensor:
        """Change the images of a batch, all of them by the same few operators; nothing waits for the device.

        A GPU takes this way: an operator costs the host more than a small patch costs the device. The results are those
        of `apply` but for the rounding of sums.

        Args:
            image: (B, C, X, Y, Z) float32, contiguous; may be changed in place.
            sent: `constants` and `arrays`, on the same device.

        Returns:
            The images in the same shape, contiguous.
        """

    def apply_with_next(
        self,
        image: Tensor,
        sent: Mapping[str, Tensor],
        following: BatchedIntensitySection,
        sent_next: Mapping[str, Tensor],
    ) -> Tensor | None:
        """Change the images as `apply_to_all` of this section and then of the following one, by fewer operators.

        Args:
            image: as for `apply_to_all`.
            sent: of this section.
            following: the section of the next change of the batch.
            sent_next: of the following section.

        Returns:
            The images; None if these two sections have no common way, and nothing was changed.
        """
        return None


class LinearIntensitySection(BatchedIntensitySection):
    """An augmentation that multiplies the values by a factor and adds an offset, both known before the image is."""

    @abstractmethod
    def linear(self, draws: Draws, shape: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The factor and the offset of each channel, (B, C or 1) each; 1 and 0 for a sample that is not changed.

        Args:
            draws: of all samples of a batch, at least one of which is changed.
            shape: (5,), of the images.
        """

    def arrays(self, draws: Draws, shape: Sequence[int]) -> dict[str, NDArray[Any]]:
        """The factors and the offsets."""
        factor, offset = self.linear(draws, shape)
        return {"factor": factor[:, :, None, None, None], "offset": offset[:, :, None, None, None]}

    def apply_to_all(self, image: Tensor, sent: Mapping[str, Tensor]) -> Tensor:
        """Change each channel (X, Y, Z) by its factor and its offset."""
        import torch

        return torch.addcmul(sent["offset"], image, sent["factor"], out=image)


def of_all(draws: Draws, name: str, unchanged: float, shape: Sequence[int]) -> NDArray[np.float32]:
    """The numbers of all samples of a batch, in a shape that broadcasts over the images: (B, C or 1, 1, 1, 1).

    Args:
        draws: of the batch.
        name: of the numbers, which are one for each sample, or one for each channel.
        unchanged: the number of a sample that is not changed.
        shape: (5,), of the images.
    """
    import numpy as np

    values = draws.values[name].reshape(len(draws.values[name]), -1)
    found = np.full((shape[0], values.shape[1], 1, 1, 1), unchanged, np.float32)
    found[draws.hit] = values[:, :, None, None, None]
    return found


def _positive_range(values: tuple[float, float]) -> tuple[float, float]:
    if not 0 < values[0] <= values[1]:
        raise ValueError(f"expected two positive numbers, the lower one first, got {list(values)}")
    return values


PositiveRange = Annotated[Pair, AfterValidator(_positive_range)]
"""The lowest and the highest value of a number that is drawn."""


def _shares(values: tuple[float, float]) -> tuple[float, float]:
    if values[1] > 1:
        raise ValueError(f"expected shares of the patch, at most 1, got {list(values)}")
    return values


ShareRange = Annotated[PositiveRange, AfterValidator(_shares)]
"""The lowest and the highest value of a share of the patch that is drawn."""


def draw_uniform(rng: np.random.Generator, values: tuple[float, float], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Draw numbers uniformly from a range.

    Args:
        rng: the generator.
        values: lowest and highest value.
        shape: of the result.
    """
    found: NDArray[np.float64] = values[0] + (values[1] - values[0]) * rng.random(shape)
    return found


def draw_around_one(rng: np.random.Generator, values: tuple[float, float], count: int) -> NDArray[np.float64]:
    """Draw factors or exponents: with equal chance from the part of the range below 1 and from the part above it.

    A range that lies on one side of 1 has one part only. This is the distribution of nnU-Net (`BGContrast` of
    batchgeneratorsv2).

    Args:
        rng: the generator.
        values: lowest and highest value.
        count: numbers to draw.
    """
    import numpy as np

    side, share = rng.random((2, count))
    below = ((side < 0.5) & (values[0] < 1)) | (values[1] <= 1)
    low = np.where(below, values[0], max(values[0], 1))
    high = np.where(below, min(values[1], 1), values[1])
    found: NDArray[np.float64] = low + (high - low) * share
    return found


def per_channel(values: Tensor) -> Tensor:
    """Shape numbers (B,) or (B, C) so that they multiply images (B, C, X, Y, Z)."""
    return values.view(len(values), -1, 1, 1, 1)
