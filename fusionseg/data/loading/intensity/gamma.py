"""Gamma: the intensities, scaled to [0, 1], are raised to a random power."""

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

_VOXELS = (2, 3, 4)
_SMALLEST = 1e-30
"""Smallest range and deviation that are divided by: a channel of one value stays as it is, in any unit."""
_SMALLEST_VARIANCE = 1e-44
"""Is added to the variance where that is divided by: the smallest numbers of 32 bits are near it."""
_LARGEST_POWER = 2.25
"""Largest product of two exponents for both powers without new statistics between them: it is that of nnU-Net's ranges,
and the variance of the result is a number of 32 bits then for any range of values from 1e-9 to 1e8."""


class _Gamma(BatchedIntensitySection):
    """A random power of the intensities of each channel."""

    exponent: PositiveRange = (0.7, 1.5)
    """Lowest and highest exponent; it is drawn with equal chance below and above 1."""
    retain_stats: bool = True
    """Give each channel of the patch the mean and the standard deviation that it had."""
    per_channel: bool = True
    """Draw an exponent for each channel, instead of one for all of them."""

    def draw(self, rng: np.random.Generator, layout: ImageLayout) -> dict[str, Any]:
        """Draw the exponents."""
        return {"exponent": draw_around_one(rng, self.exponent, layout.channels if self.per_channel else 1)}

    def _power(self, image: Tensor, exponent: Tensor) -> Tensor:
        """Apply the power to each channel, between its lowest and its highest value; in place."""
        from fusionseg.data.loading.channel_statistics import centre_, channel_range

        power = per_channel(exponent)
        if not self.retain_stats:
            lowest, highest = channel_range(image)
            extent = (highest - lowest).clamp_(min=_SMALLEST)
            return _power_(image.sub_(lowest).div_(extent), power).mul_(extent).add_(lowest)
        # The former mean and deviation are restored, so the range of the values has no influence on the result.
        lowest = image.amin((2, 3, 4), keepdim=True)
        mean, deviation = centre_(image)
        _power_(image.sub_(lowest - mean).relu_(), power)
        _, changed = centre_(image)
        ratio = deviation.div_(changed.clamp_(min=_SMALLEST)).clamp_(max=1 / _SMALLEST)  # finite: 0 times it is 0
        return image.mul_(ratio).add_(mean)

    def arrays(self, draws: Draws, shape: Sequence[int]) -> dict[str, NDArray[Any]]:
        """The exponents; 1 for a sample that is not changed."""
        return {"exponent": of_all(draws, "exponent", 1.0, shape)}

    def _power_of_all(self, image: Tensor, exponent: Tensor, sign: int) -> Tensor:
        """Apply the power to each channel of a batch, from its lowest value up (sign 1) or its highest down (-1)."""
        import torch

        if not self.retain_stats:
            lowest, highest = (edge[..., None, None, None] for edge in torch.aminmax(image.flatten(2), dim=2))
            extent = (highest - lowest).clamp_(min=_SMALLEST)
            base = (image - lowest if sign > 0 else highest - image).div_(extent).pow_(exponent)
            return torch.addcmul(lowest if sign > 0 else highest, base, extent, value=sign)
        deviation, mean = torch.std_mean(image, dim=_VOXELS, correction=0, keepdim=True)
        edge = image.amax(_VOXELS, keepdim=True) if sign < 0 else image.amin(_VOXELS, keepdim=True)
        base = (edge - image if sign < 0 else image - edge).pow_(exponent)
        return _restored(base, deviation if sign > 0 else deviation.neg(), mean)


def _restored(image: Tensor, deviation: Tensor, mean: Tensor) -> Tensor:
    """Give each channel (X, Y, Z) a mean and a standard deviation; a negative one inverts the channel.

    A norm of each channel does it, whose weight and bias are deviation and mean.

    Args:
        image: (B, C, X, Y, Z).
        deviation: (B, C, 1, 1, 1).
        mean: (B, C, 1, 1, 1).
    """
    import torch

    rows = image.view(1, deviation.numel(), -1)
    count, voxels = rows.shape[1:]
    restored, _, _ = torch.native_group_norm(
        rows, deviation.view(-1), mean.view(-1), 1, count, voxels, count, _SMALLEST_VARIANCE
    )
    return restored.view_as(image)


def _power_(image: Tensor, exponent: Tensor) -> Tensor:
    """Raise values of at least 0 to a power, in place. It is faster than torch.pow; 0 stays 0, as exp(log(0))."""
    return image.log_().mul_(exponent).exp_()


@augmentations.register("gamma")
class GammaConfig(_Gamma):
    """Raise the intensities of the patch, scaled to [0, 1], to a random power."""

    order: ClassVar[int] = 80

    prob: Probability = 0.3
    """Probability that a sample is changed."""

    def apply(self, image: Tensor, drawn: Drawn) -> Tensor:
        """Change each channel (X, Y, Z) by its exponent."""
        return self._power(image, drawn["exponent"])

    def apply_to_all(self, image: Tensor, sent: Mapping[str, Tensor]) -> Tensor:
        """Change each channel (X, Y, Z) by its exponent."""
        return self._power_of_all(image, sent["exponent"], 1)


@augmentations.register("gamma_inverted")
class InvertedGammaConfig(_Gamma):
    """Raise the intensities of the inverted patch to a random power: as `gamma`, from the highest value down."""

    order: ClassVar[int] = 70

    prob: Probability = 0.1
    """Probability that a sample is changed."""

    def apply(self, image: Tensor, drawn: Drawn) -> Tensor:
        """Change each channel (X, Y, Z) by its exponent."""
        return self._power(image.neg_(), drawn["exponent"]).neg_()

    def apply_to_all(self, image: Tensor, sent: Mapping[str, Tensor]) -> Tensor:
        """Change each channel (X, Y, Z) by its exponent."""
        return self._power_of_all(image, sent["exponent"], -1)

    def apply_with_next(
        self,
        image: Tensor,
        sent: Mapping[str, Tensor],
        following: BatchedIntensitySection,
        sent_next: Mapping[str, Tensor],
    ) -> Tensor | None:
        """Apply the powers of this section and of `gamma`, and restore mean and deviation once, at the end.

        The mean and the deviation that `gamma` finds are those of the patch, and it measures its values from the lowest
        one, which is that of the largest power of the inverted patch.
        """
        import torch

        if not isinstance(following, GammaConfig) or not (self.retain_stats and following.retain_stats):
            return None
        if self.exponent[1] * following.exponent[1] > _LARGEST_POWER:
            return None
        deviation, mean = torch.std_mean(image, dim=_VOXELS, correction=0, keepdim=True)
        base = (image.amax(_VOXELS, keepdim=True) - image).pow_(sent["exponent"])
        torch.sub(base.amax(_VOXELS, keepdim=True), base, out=base)
        return _restored(base.pow_(sent_next["exponent"]), deviation, mean)
