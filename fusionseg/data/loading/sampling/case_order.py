"""The order of the cases: which case is the n-th volume of a training, as a pure function of (seed, n)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.loading.counter_random import random_bits, uniform
from fusionseg.data.loading.purposes import Purpose

GOLDEN = (5**0.5 - 1) / 2
"""Multiples of this number modulo 1 are spread evenly, however many there are (a sequence of low discrepancy)."""


class CaseOrder:
    """The order in which cases are drawn, epoch after epoch.

    Without weights, each epoch has every case once. With weights, an epoch has as many volumes as there are cases, and
    a case of weight w among weights of mean m has w / m of them: rounded down or up in each epoch, and exact over many.
    This is systematic sampling, whose starting point moves on by the golden ratio from epoch to epoch.

    Args:
        seed: of the run.
        count: number of cases.
        weights: of the cases, at least one above 0; None for equal ones.
    """

    def __init__(self, seed: int, count: int, weights: Sequence[float] | None = None) -> None:
        self.seed = seed
        self.count = count
        self._upper: NDArray[np.float64] | None = None
        if weights is not None and len(set(weights)) > 1:
            self._upper = np.cumsum(weights) * (count / np.sum(weights))
            self._last = int(np.flatnonzero(weights)[-1])
            self._start = float(uniform(seed, 0, 0, Purpose.EPOCH_START, 1)[0])
        self.epoch = lru_cache(maxsize=4)(self._draw_epoch)

    @property
    def is_weighted(self) -> bool:
        """True if some cases are drawn more often than others."""
        return self._upper is not None

    def case_of(self, volume: int) -> int:
        """The index of the case that is the n-th volume.

        Args:
            volume: its number n.
        """
        epoch, position = divmod(volume, self.count)
        return int(self.epoch(epoch)[position])

    def _draw_epoch(self, epoch: int) -> NDArray[np.int64]:
        # Sorting random words gives a permutation. numpy's own shuffle may differ between versions of numpy.
        order: NDArray[np.int64] = np.argsort(
            random_bits(self.seed, epoch, 0, Purpose.ORDER, self.count), kind="stable"
        )
        if self._upper is None:
            return order
        points = np.arange(self.count) + (self._start + epoch * GOLDEN) % 1
        return np.minimum(np.searchsorted(self._upper, points, side="right"), self._last)[order]
