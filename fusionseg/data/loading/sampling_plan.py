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
from fusionseg.data.loading.purposes import Purpose


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


@dataclass(frozen=True)
class Samples:
    """The B samples of one micro-batch, in host memory."""

    step: int
    sample: NDArray[np.int64]
    """(B,) index k of each sample within the global batch."""
    case_index: NDArray[np.int64]
    """(B,) index of the case in the plan."""
    origin: NDArray[np.int64]
    """(B, 3) first voxel of the patch in the volume; negative where the patch is larger than the volume."""
    flip: NDArray[np.bool_]
    """(B, 3), True for an axis that is flipped."""
    angles: NDArray[np.float64]
    """(B, 3) angles of rotation about the axes in radians."""
    zoom: NDArray[np.float64]
    """(B,) factor; above 1 things look larger."""
    elastic: NDArray[np.float64]
    """(B,) standard deviation of the displacements at the coarse grid's points, in voxels."""
    elastic_key: NDArray[np.int64]
    """(B,) 32-bit keys of the displacements."""
    draws: dict[str, Draws]
    """The random numbers of the augmentations that change a patch after it was cut, by key of the configuration."""

    @property
    def warped(self) -> NDArray[np.bool_]:
        """(B,) True for a patch that is interpolated instead of cut out."""
        moved: NDArray[np.bool_] = (self.angles != 0).any(axis=1) | (self.zoom != 1) | (self.elastic != 0)
        return moved


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
        channels: int = 1,
    ) -> None:
        self.cases = cases
        self.augment = augment
        self.seed = seed
        self.patch = patch
        self.global_batch = global_batch
        self.samples_per_volume = samples_per_volume
        self.foreground = foreground
        self._augmentations = open_augmentations(augment, channels)
        self._order = lru_cache(maxsize=4)(self._draw_order)

    def samples(self, step: int, indices: Sequence[int]) -> Samples:
        """Plan samples of a step.

        Args:
            step: of the optimizer.
            indices: of the samples within the global batch.
        """
        augment, count = self.augment, len(indices)
        case_index = np.array([self.case_of(step, k) for k in indices], np.int64)
        angles, zoom, elastic = np.zeros((count, 3)), np.ones(count), np.zeros(count)
        flip, elastic_key = np.zeros((count, 3), np.bool_), np.zeros(count, np.int64)
        origin = np.zeros((count, 3), np.int64)
        for i, k in enumerate(indices):
            origin[i] = self._origin(step, k, self.cases[case_index[i]])
            if augment.flip:
                flip[i] = uniform(self.seed, step, k, Purpose.FLIP, 3) < augment.flip
            if augment.rotate is not None:
                draw = uniform(self.seed, step, k, Purpose.ROTATE, 4)
                if draw[0] < augment.rotate.prob:
                    angles[i] = np.deg2rad(augment.rotate.degrees) * (2 * draw[1:] - 1)
            if augment.scale is not None:
                hit, value = uniform(self.seed, step, k, Purpose.ZOOM, 2)
                zoom[i] = 1 + augment.scale.factor * (2 * value - 1) if hit < augment.scale.prob else 1.0
            if augment.elastic is not None:
                hit, key = uniform(self.seed, step, k, Purpose.ELASTIC, 2)
                elastic[i] = augment.elastic.magnitude if hit < augment.elastic.prob else 0.0
                elastic_key[i] = int(key * 2**32)
        draws = {one.key: one.draw(self.seed, step, indices) for one in self._augmentations}
        return Samples(
            step,
            np.array(indices, np.int64),
            case_index,
            origin,
            flip,
            angles,
            zoom,
            elastic,
            elastic_key,
            draws,
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
