"""The sampling plan: sample k of step s as a pure function of (seed, s, k).

Every random number comes from a counter-based generator (`counter_random`). Nothing is drawn from a stream, so nothing
has to be saved, resuming is exact, and one process with four accumulation steps has the same samples as four processes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fusionseg.config.data.augmentation import AugmentConfig
from fusionseg.data.loading.augmentation_protocol import Draws
from fusionseg.data.loading.augmentations import open_augmentations
from fusionseg.data.loading.counter_random import random_bits
from fusionseg.data.loading.intensity.section import ImageLayout
from fusionseg.data.loading.purposes import Purpose
from fusionseg.data.loading.sampling.case_order import CaseOrder
from fusionseg.data.loading.sampling.counts import DrawnCounts
from fusionseg.data.loading.sampling.patch_centres import PatchCentres, PlanCase
from fusionseg.data.loading.sampling.weights import EVEN, SamplingWeights
from fusionseg.data.loading.spatial.plan import SpatialChanges, SpatialPlan
from fusionseg.data.loading.spatial.rules import ALL_AXES, SpatialRules


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


class CaseDraws(Protocol):
    """The case of each sample, where a rank does not draw from all cases."""

    def case_of(self, step: int, k: int) -> int:
        """The index of the case of sample k of a step."""
        ...


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
        weights: of classes and cases.
        draws: the case of each sample; None for all cases, epoch after epoch.

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
        weights: SamplingWeights = EVEN,
        draws: CaseDraws | None = None,
    ) -> None:
        self.cases = cases
        self.augment = augment
        self.seed = seed
        self.patch = patch
        self.global_batch = global_batch
        self.samples_per_volume = samples_per_volume
        self.foreground = foreground
        self.weights = weights
        self._spatial = SpatialPlan(augment, rules, seed)
        self._augmentations = open_augmentations(augment, ImageLayout(channels, rules.through_plane))
        # A batch, what else the loss needs, and the threads that read ahead ask for the same.
        self._planned = lru_cache(maxsize=32)(self._plan)
        self._planning = Lock()
        self._counted = lru_cache(maxsize=1)(self._count)  # the log and the record of a validation ask for the same
        self._order = CaseOrder(seed, len(cases), weights.cases)
        self._draws = draws
        self._centres = PatchCentres(cases, patch, foreground, weights, seed)

    def samples(self, step: int, indices: Sequence[int]) -> Samples:
        """Plan samples of a step.

        Args:
            step: of the optimizer.
            indices: of the samples within the global batch.

        Returns:
            The samples; do not change their arrays, because the next call for the same samples gives them again.
        """
        return self._planned(step, tuple(indices))

    def _plan(self, step: int, indices: tuple[int, ...]) -> Samples:
        with self._planning:  # an augmentation of the user's own need not be made for several threads
            return self._drawn(step, indices)

    def _drawn(self, step: int, indices: tuple[int, ...]) -> Samples:
        case_index = np.array([self.case_of(step, k) for k in indices], np.int64)
        origin = np.zeros((len(indices), 3), np.int64)
        for i, k in enumerate(indices):
            origin[i] = self._centres.origin(step, k, int(case_index[i]))
        return Samples(
            step=step,
            sample=np.array(indices, np.int64),
            case_index=case_index,
            origin=origin,
            draws={one.key: one.draw(self.seed, step, indices) for one in self._augmentations},
            **vars(self._spatial.draw(step, indices)),
        )

    def case_of(self, step: int, k: int) -> int:
        """The index of the case of a sample, see `CaseOrder`, `CaseShares` and `CaseWindow`.

        Args:
            step: of the optimizer.
            k: index of the sample within the global batch.
        """
        if self._draws is not None:
            return self._draws.case_of(step, k)
        return self._order.case_of((step * self.global_batch + k) // self.samples_per_volume)

    def count(self, steps: range) -> DrawnCounts:
        """Count the patches of some steps by class and by case.

        Args:
            steps: of the optimizer.
        """
        return self._counted(steps)

    def _count(self, steps: range) -> DrawnCounts:
        counts = DrawnCounts(steps, Counter(), Counter())
        for step in steps:
            for k in range(self.global_batch):
                case_index = self.case_of(step, k)
                counts.cases[case_index] += 1
                counts.classes[self._centres.class_of(step, k, case_index)] += 1
        return counts

    def network_seed(self, step: int, k: int) -> int:
        """Seed of the random numbers within the network (dropout, stochastic depth) for a micro-batch.

        Args:
            step: of the optimizer.
            k: index of the first sample of the micro-batch within the global batch.
        """
        return int(random_bits(self.seed, step, k, Purpose.NETWORK, 1)[0] >> np.uint64(1))
