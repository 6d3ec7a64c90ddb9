"""The sample plan: what sample k of step s is, as a pure function of (seed, s, k).

Every random number comes from a counter-based generator (Philox4x64: Salmon et al., "Parallel random numbers: as easy
as 1, 2, 3", SC 2011) whose counter is (step, sample, purpose). Nothing is drawn from a stream, so nothing has to be
saved, resuming is exact, and one process with four accumulation steps sees what four processes see. Each purpose
has a counter of its own: switching one augmentation on does not change the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fusionseg.config.data_sections import AugmentConfig


class Purpose(IntEnum):
    """What a random number is for: part of the generator's counter, so the values must never change."""

    ORDER = 0
    CENTRE = 1
    FLIP = 2
    SHIFT = 3
    SCALE_INTENSITY = 4
    NOISE = 5
    ROTATE = 6
    ZOOM = 7
    ELASTIC = 8
    NETWORK = 9
    HIDDEN = 10
    HIDDEN_IN_VALIDATION = 11


def random_bits(seed: int, step: int, sample: int, purpose: Purpose, count: int) -> NDArray[np.uint64]:
    """`count` random 64-bit words that belong to these four numbers."""
    bits: NDArray[np.uint64] = np.random.Philox(key=[seed, 0], counter=[0, purpose, sample, step]).random_raw(count)
    return bits


def uniform(seed: int, step: int, sample: int, purpose: Purpose, count: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1)."""
    return (random_bits(seed, step, sample, purpose, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def hidden_blocks(
    seed: int, step: int, sample: int, purpose: Purpose, num_blocks: int, num_hidden: int
) -> NDArray[np.bool_]:
    """(num_blocks,) which blocks of a sample are hidden from the network; a higher share hides more, never others."""
    order = np.argsort(random_bits(seed, step, sample, purpose, num_blocks), kind="stable")
    hidden = np.zeros(num_blocks, np.bool_)
    hidden[order[:num_hidden]] = True
    return hidden


@dataclass(frozen=True)
class CaseIndex:
    """What the plan must know of a case: its size, and where its foreground is."""

    name: str
    shape: tuple[int, int, int]
    foreground: NDArray[np.int64]
    """Flat voxel indices, class after class."""
    class_offsets: tuple[int, ...]
    """Where each class that occurs begins in `foreground`, and the end."""


@dataclass(frozen=True)
class Samples:
    """The samples of one micro-batch, B of them; everything lies in host memory."""

    step: int
    sample: NDArray[np.int64]
    """(B,) index k of each within the global batch."""
    case: NDArray[np.int64]
    """(B,) index of the case."""
    origin: NDArray[np.int64]
    """(B, 3) voxel of the volume at which the patch begins; negative where the patch is larger than the volume."""
    flip: NDArray[np.bool_]
    """(B, 3)"""
    shift: NDArray[np.float64]
    """(B,) added to the intensities."""
    scale: NDArray[np.float64]
    """(B,) factor on the intensities."""
    noise_std: NDArray[np.float64]
    """(B,)"""
    angles: NDArray[np.float64]
    """(B, 3) rotation about the axes, radians."""
    zoom: NDArray[np.float64]
    """(B,)"""
    elastic: NDArray[np.float64]
    """(B,) standard deviation of the displacements at the coarse grid's points, in voxels."""
    keys: NDArray[np.int64]
    """(B, 2) 32-bit keys of the noise and of the displacements."""

    @property
    def warped(self) -> NDArray[np.bool_]:
        """(B,) whether the patch is interpolated instead of cut out."""
        moved: NDArray[np.bool_] = (self.angles != 0).any(axis=1) | (self.zoom != 1) | (self.elastic != 0)
        return moved


class SamplePlan:
    """Which case, crop, flip, rotation and noise belong to sample k of step s."""

    def __init__(
        self,
        cases: Sequence[CaseIndex],
        augment: AugmentConfig,
        *,
        seed: int,
        patch: tuple[int, int, int],
        global_batch: int,
        samples_per_volume: int,
        foreground: float,
    ) -> None:
        self.cases = cases
        self.augment = augment
        self.seed = seed
        self.patch = patch
        self.global_batch = global_batch
        self.samples_per_volume = samples_per_volume
        self.foreground = foreground
        self._order = lru_cache(maxsize=4)(self._draw_order)

    def samples(self, step: int, indices: Sequence[int]) -> Samples:
        """Plan the samples `indices` (0 <= k < global_batch) of `step`."""
        augment, count = self.augment, len(indices)
        case = np.array([self.case_of(step, k) for k in indices], np.int64)
        shift, scale, noise = np.zeros(count), np.ones(count), np.zeros(count)
        angles, zoom, elastic = np.zeros((count, 3)), np.ones(count), np.zeros(count)
        flip, keys = np.zeros((count, 3), np.bool_), np.zeros((count, 2), np.int64)
        origin = np.zeros((count, 3), np.int64)
        for i, k in enumerate(indices):
            origin[i] = self._origin(step, k, self.cases[case[i]])
            if augment.flip:
                flip[i] = uniform(self.seed, step, k, Purpose.FLIP, 3) < augment.flip
            if (part := augment.shift_intensity) is not None:
                hit, value = uniform(self.seed, step, k, Purpose.SHIFT, 2)
                shift[i] = part.offset * (2 * value - 1) if hit < part.prob else 0.0
            if (part_scale := augment.scale_intensity) is not None:
                hit, value = uniform(self.seed, step, k, Purpose.SCALE_INTENSITY, 2)
                scale[i] = 1 + part_scale.factor * (2 * value - 1) if hit < part_scale.prob else 1.0
            if (part_noise := augment.noise) is not None:
                hit, value, key = uniform(self.seed, step, k, Purpose.NOISE, 3)
                noise[i] = part_noise.std * value if hit < part_noise.prob else 0.0
                keys[i, 0] = int(key * 2**32)
            if (part_rotate := augment.rotate) is not None:
                draw = uniform(self.seed, step, k, Purpose.ROTATE, 4)
                if draw[0] < part_rotate.prob:
                    angles[i] = np.deg2rad(part_rotate.degrees) * (2 * draw[1:] - 1)
            if (part_zoom := augment.scale) is not None:
                hit, value = uniform(self.seed, step, k, Purpose.ZOOM, 2)
                zoom[i] = 1 + part_zoom.factor * (2 * value - 1) if hit < part_zoom.prob else 1.0
            if (part_elastic := augment.elastic) is not None:
                hit, key = uniform(self.seed, step, k, Purpose.ELASTIC, 2)
                elastic[i] = part_elastic.magnitude if hit < part_elastic.prob else 0.0
                keys[i, 1] = int(key * 2**32)
        return Samples(
            step,
            np.array(indices, np.int64),
            case,
            origin,
            flip,
            shift,
            scale,
            noise,
            angles,
            zoom,
            elastic,
            keys,
        )

    def case_of(self, step: int, k: int) -> int:
        """The case of sample k: every case once in each epoch, in an order of its own for each epoch."""
        volume = (step * self.global_batch + k) // self.samples_per_volume
        epoch, position = divmod(volume, len(self.cases))
        return int(self._order(epoch)[position])

    def network_seed(self, step: int, k: int) -> int:
        """Seed of what the network itself draws (dropout, stochastic depth) for the micro-batch that begins at k."""
        return int(random_bits(self.seed, step, k, Purpose.NETWORK, 1)[0] >> np.uint64(1))

    def _draw_order(self, epoch: int) -> NDArray[np.int64]:
        # A sort of random words is a permutation; numpy's own shuffle may change between its versions.
        order: NDArray[np.int64] = np.argsort(
            random_bits(self.seed, epoch, 0, Purpose.ORDER, len(self.cases)), kind="stable"
        )
        return order

    def _origin(self, step: int, k: int, case: CaseIndex) -> NDArray[np.int64]:
        draw = uniform(self.seed, step, k, Purpose.CENTRE, 6)
        shape, patch = np.array(case.shape), np.array(self.patch)
        lowest, highest = np.minimum(0, shape - patch), np.maximum(0, shape - patch)
        # Where the patch is larger than the volume, the volume lies anywhere inside it.
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
