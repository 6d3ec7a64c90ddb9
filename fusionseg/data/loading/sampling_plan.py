"""The sampling plan: sample k of step s as a pure function of (seed, s, k).

Every random number comes from a counter-based generator (`counter_random`). Nothing is drawn from a stream, so nothing
has to be saved, resuming is exact, and one process with four accumulation steps has the same samples as four processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fusionseg.config.data.augmentation import AugmentConfig
from fusionseg.data.loading.augmentation_protocol import Draws
from fusionseg.data.loading.augmentations import open_augmentations
from fusionseg.data.loading.counter_random import random_bits, uniform
from fusionseg.data.loading.intensity.section import ImageLayout
from fusionseg.data.loading.purposes import Purpose
from fusionseg.data.loading.spatial_plan import SpatialChanges, SpatialPlan
from fusionseg.data.loading.spatial_rules import ALL_AXES, SpatialRules


@dataclass(frozen=True)
class PlanCase:
    """A case as the sampling plan sees it: its size and the positions of its foreground.

    Args:
        name: of the case.
        shape: (X, Y, Z).
        foreground: flat voxel indices, class after class.
        class_offsets: index in `foreground` of the first voxel of each class that occurs, then the number of voxels.
    """

    name: str
    shape: tuple[int, int, int]
    foreground: NDArray[np.int64]
    class_offsets: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Samples(SpatialChanges):
    """The B samples of one micro-batch, in host memory."""

    step: int
    sample: NDArray[np.int64]
    """(B,) index k of each sample within the global batch."""
    case_index: NDArray[np.int64]
    """(B,) index of the case in the plan."""
    origin: NDArray[np.int64]
    """(B, 3) first voxel of the patch in the volume; negative where the patch is larger than the volume."""
    draws: dict[str, Draws]
    """The random numbers of the augmentations that change a patch after it was cut, by key of the configuration."""


class SamplePlan:
    """The assignment of a case, a crop and random changes to sample k of step s.

    Args:
        cases: the training cases.
        augment: the section `augment`.
        seed: of the run.
        patch: size in voxels.
        global_batch: samples of a step.
        samples_per_volume: consecutive samples from one case.
        foreground: chance that a patch is centred on a foreground voxel.
        channels: channels of the images.
        rules: the axes that spatial augmentations may change.

    Raises:
        UserError: an augmentation of the user's own cannot be made.
    """

    def __init__(
        self,
        cases: Sequence[PlanCase],
        augment: AugmentConfig,
        *,
        seed: int,
        patch: tuple[int, int, int],
        global_batch: int,
        samples_per_volume: int,
        foreground: float,
        channels: int,
        rules: SpatialRules = ALL_AXES,
    ) -> None:
        self.cases = cases
        self.augment = augment
        self.seed = seed
        self.patch = patch
        self.global_batch = global_batch
        self.samples_per_volume = samples_per_volume
        self.foreground = foreground
        self._spatial = SpatialPlan(augment, rules, seed)
        self._augmentations = open_augmentations(augment, ImageLayout(channels, rules.through_plane))
        self._order = lru_cache(maxsize=4)(self._draw_order)

    def samples(self, step: int, indices: Sequence[int]) -> Samples:
        """Plan samples of a step.

        Args:
            step: of the optimizer.
            indices: of the samples within the global batch.
        """
        case_index = np.array([self.case_of(step, k) for k in indices], np.int64)
        origin = np.zeros((len(indices), 3), np.int64)
        for i, k in enumerate(indices):
            origin[i] = self._origin(step, k, self.cases[case_index[i]])
        return Samples(
            step=step,
            sample=np.array(indices, np.int64),
            case_index=case_index,
            origin=origin,
            draws={one.key: one.draw(self.seed, step, indices) for one in self._augmentations},
            **vars(self._spatial.draw(step, indices)),
        )

    def case_of(self, step: int, k: int) -> int:
        """The index of the case of a sample: each epoch has every case once, in its own order.

        Args:
            step: of the optimizer.
            k: index of the sample within the global batch.
        """
        volume = (step * self.global_batch + k) // self.samples_per_volume
        epoch, position = divmod(volume, len(self.cases))
        return int(self._order(epoch)[position])

    def network_seed(self, step: int, k: int) -> int:
        """Seed of the random numbers within the network (dropout, stochastic depth) for a micro-batch.

        Args:
            step: of the optimizer.
            k: index of the first sample of the micro-batch within the global batch.
        """
        return int(random_bits(self.seed, step, k, Purpose.NETWORK, 1)[0] >> np.uint64(1))

    def _draw_order(self, epoch: int) -> NDArray[np.int64]:
        # Sorting random words gives a permutation. numpy's own shuffle may differ between versions of numpy.
        order: NDArray[np.int64] = np.argsort(
            random_bits(self.seed, epoch, 0, Purpose.ORDER, len(self.cases)), kind="stable"
        )
        return order

    def _origin(self, step: int, k: int, case: PlanCase) -> NDArray[np.int64]:
        draw = uniform(self.seed, step, k, Purpose.CENTRE, 6)
        shape, patch = np.array(case.shape), np.array(self.patch)
        lowest, highest = np.minimum(0, shape - patch), np.maximum(0, shape - patch)
        # Along an axis where the patch is larger than the volume, the volume lies anywhere inside the patch.
        anywhere = lowest + (draw[3:] * (highest - lowest + 1)).astype(np.int64)
        num_classes = len(case.class_offsets) - 1
        if draw[0] >= self.foreground or num_classes == 0:
            return anywhere
        chosen = int(draw[1] * num_classes)
        first, last = case.class_offsets[chosen], case.class_offsets[chosen + 1]
        voxel = np.array(np.unravel_index(case.foreground[first + int(draw[2] * (last - first))], case.shape))
        origin: NDArray[np.int64] = np.where(
            shape < patch, anywhere, np.clip(voxel - patch // 2, lowest, highest)
        ).astype(np.int64)
        return origin
