"""The changes of intensities of a whole micro-batch, by as few operators as a GPU needs for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionseg.data.loading.augmentations import PlannedAugmentation
from fusionseg.data.loading.intensity.section import LinearIntensitySection
from fusionseg.data.loading.sampling_plan import Samples
from fusionseg.data.loading.transfer import send_together

Linear = tuple[NDArray[np.float32], NDArray[np.float32]]


class BatchedIntensities:
    """Change the images of a micro-batch, all of its samples by the same operators.

    Changes that only multiply and add, and come before all others, are one factor and one offset for each channel. The
    cut of the patches on a GPU applies both where it converts the values to 32 bits, as an interpolation of changed
    values is the change of the interpolated ones. Two changes that share statistics are applied together.

    Args:
        augmentations: in the order in which they are applied.
        channels: of the images.
        patch: size in voxels.
        device: the training device.
    """

    def __init__(
        self,
        augmentations: Sequence[PlannedAugmentation],
        channels: int,
        patch: tuple[int, int, int],
        device: torch.device,
    ) -> None:
        self.augmentations = augmentations
        self.channels = channels
        self.patch = patch
        self.constants: dict[str, Tensor] = {}
        for one in augmentations:
            if one.section is not None:
                self.constants |= send_together(_named(one, one.section.constants()), device)

    def linear(self, plan: Samples) -> Linear | None:
        """The factor and the offset of the changes that come first and only multiply and add: (B, C or 1) each.

        Args:
            plan: the samples of a micro-batch.

        Returns:
            None if there is no such change.
        """
        found: Linear | None = None
        for one in self._first_linear(plan):
            assert isinstance(one.section, LinearIntensitySection)
            factor, offset = one.section.linear(plan.draws[one.key], self._shape(plan))
            found = (factor, offset) if found is None else (found[0] * factor, found[1] * factor + offset)
        return found

    def arrays(self, plan: Samples) -> dict[str, NDArray[Any]]:
        """Compute on the host what `apply` needs on the device.

        Args:
            plan: the samples of a micro-batch.
        """
        found: dict[str, NDArray[Any]] = {}
        for one in self._others(plan):
            if one.section is not None:
                found |= _named(one, one.section.arrays(plan.draws[one.key], self._shape(plan)))
        return found

    def apply(
        self,
        image: Tensor,
        label: Tensor,
        plan: Samples,
        sent: dict[str, Tensor],
        send: Callable[[NDArray[Any]], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Apply all changes but those of `linear`.

        Args:
            image: (B, C, X, Y, Z) float32, contiguous; changed in place.
            label: (B, 1, X, Y, Z); changed in place.
            plan: the samples of the micro-batch.
            sent: `constants` and `arrays`, on the training device.
            send: copies an array to the training device.
        """
        left = self._others(plan)
        while left:
            one, *left = left
            if one.section is None:
                image, label = one.apply(image, label, plan.draws[one.key], send)
                continue
            following = left[0].section if left else None
            both = None
            if following is not None:
                both = one.section.apply_with_next(image, _those_of(one, sent), following, _those_of(left[0], sent))
            if both is None:
                image = one.section.apply_to_all(image, _those_of(one, sent))
            else:
                image, left = both, left[1:]
        return image, label

    def _shape(self, plan: Samples) -> tuple[int, ...]:
        return (len(plan.case_index), self.channels, *self.patch)

    def _drawn(self, plan: Samples) -> list[PlannedAugmentation]:
        """The augmentations that change a sample of the micro-batch."""
        return [one for one in self.augmentations if plan.draws[one.key].hit.any()]

    def _first_linear(self, plan: Samples) -> list[PlannedAugmentation]:
        drawn = self._drawn(plan)
        end = next(
            (i for i, one in enumerate(drawn) if not isinstance(one.section, LinearIntensitySection)), len(drawn)
        )
        return drawn[:end]

    def _others(self, plan: Samples) -> list[PlannedAugmentation]:
        return self._drawn(plan)[len(self._first_linear(plan)) :]


def _named(one: PlannedAugmentation, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays of an augmentation, by names that no other augmentation has."""
    return {f"{one.key}: {name}": values for name, values in arrays.items()}


def _those_of(one: PlannedAugmentation, sent: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an augmentation by their own names, from those of all augmentations."""
    prefix = f"{one.key}: "
    return {name.removeprefix(prefix): tensor for name, tensor in sent.items() if name.startswith(prefix)}
