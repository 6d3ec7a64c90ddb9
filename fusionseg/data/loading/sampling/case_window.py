"""A window of cases that moves on during the training: its cases in each rotation, and the case of each sample.

All of it is a pure function of (seed, step, sample), so a resumed run has the window of the run before.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import ceil

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.loading.counter_random import random_bits
from fusionseg.data.loading.purposes import Purpose


class CaseWindow:
    """All ranks draw the samples of a rotation from the same window of cases.

    The cases are in a circle in random order, and the window is a part of it. After each rotation the window moves on:
    the cases that have been in it for the longest time leave, and the next ones of the circle enter. So each case is in
    the window for the same number of rotations, if the circle is gone round often enough. In a rotation each case of
    the window is drawn once before one is drawn again, and at least once.

    Args:
        seed: of the run.
        voxels: of each training case.
        window: share of the cases that are in the window, below 1.
        replaced: share of the window that is replaced after a rotation.
        global_batch: samples of a step.
        samples_per_volume: consecutive samples from one case.
    """

    def __init__(
        self,
        seed: int,
        voxels: Sequence[int],
        *,
        window: float,
        replaced: float,
        global_batch: int,
        samples_per_volume: int,
    ) -> None:
        count = len(voxels)
        self.seed = seed
        self.global_batch = global_batch
        self.samples_per_volume = samples_per_volume
        self.size = min(max(1, round(window * count)), max(1, count - 1))
        """Number of cases in the window."""
        self.replaced = min(max(1, round(replaced * self.size)), count - self.size)
        """Number of cases that are replaced after a rotation; 0 if there is one case only."""
        self.steps = ceil(self.size * samples_per_volume / global_batch)
        """Number of steps of a rotation."""
        self._voxels = np.array(voxels, np.int64)
        self._circle = np.argsort(random_bits(seed, 0, 0, Purpose.WINDOW, count), kind="stable")
        self._order = lru_cache(maxsize=8)(self._draw_order)

    @property
    def capacity(self) -> int:
        """The number of voxels that hold any window, the cases that enter it next, and a gap."""
        around = np.concatenate([[0], np.cumsum(np.tile(self._voxels[self._circle], 2))])
        held = self.size + self.replaced
        return int((around[held:] - around[:-held]).max() + self._voxels.max())

    def describe(self) -> str:
        """The cases of a window in words, for the log."""
        return (
            f"{self.size} of {len(self._voxels)} training cases at a time, of which {self.replaced} are replaced every"
            f" {self.steps} steps,"
        )

    def rotation(self, step: int) -> int:
        """The number of the rotation that a step belongs to."""
        return step // self.steps

    def cases(self, rotation: int) -> NDArray[np.int64]:
        """The indices of the cases in the window; the first ones leave after the rotation.

        Args:
            rotation: its number.
        """
        first = rotation * self.replaced
        return self._circle[np.arange(first, first + self.size) % len(self._circle)]

    def case_of(self, step: int, k: int) -> int:
        """The index of the case of a sample.

        Args:
            step: of the optimizer.
            k: index of the sample within the global batch.
        """
        rotation, later = divmod(step, self.steps)
        volume = (later * self.global_batch + k) // self.samples_per_volume
        once, position = divmod(volume, self.size)
        place = rotation * self.replaced + self._order(rotation, once)[position]
        return int(self._circle[place % len(self._circle)])

    def _draw_order(self, rotation: int, once: int) -> NDArray[np.int64]:
        return np.argsort(random_bits(self.seed, rotation, once, Purpose.WINDOW_ORDER, self.size), kind="stable")
