"""Cases divided over the ranks: the share of each rank in each period, and the case of each sample.

All of it is a pure function of (seed, step, sample), of the sizes of the cases, and of the number of ranks and the
micro-batch: these decide which rank makes a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import ceil

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.loading.counter_random import random_bits
from fusionseg.data.loading.purposes import Purpose


class CaseShares:
    """Each rank draws its samples from its own share of the cases. The shares are drawn anew after some epochs.

    In a period every case is in one share. The shares differ by at most one case, and hardly in bytes: of each group of
    cases of similar size, every rank has one. A rank draws each case of its share once before it draws one again. So in
    an epoch each case is drawn once, if the number of ranks divides that of the cases. If not, the cases of a smaller
    share are drawn more often in this period; the shares are drawn such that over many periods all cases are drawn
    equally often.

    Args:
        seed: of the run.
        voxels: of each training case.
        ranks: number of ranks.
        micro_batch: samples of a micro-batch.
        global_batch: samples of a step.
        samples_per_volume: consecutive samples of a rank from one case.
        epochs: after which the shares are drawn anew.
    """

    def __init__(
        self,
        seed: int,
        voxels: Sequence[int],
        *,
        ranks: int,
        micro_batch: int,
        global_batch: int,
        samples_per_volume: int,
        epochs: int,
    ) -> None:
        self.seed = seed
        self.ranks = ranks
        self.micro_batch = micro_batch
        self.global_batch = global_batch
        self.samples_per_volume = samples_per_volume
        self.steps = ceil(epochs * len(voxels) * samples_per_volume / global_batch)
        """Number of steps of a period."""
        self._voxels = np.array(voxels, np.int64)
        self._by_size = np.argsort(-self._voxels, kind="stable")
        self._shares = lru_cache(maxsize=2)(self._draw_shares)
        self._order = lru_cache(maxsize=4 * ranks)(self._draw_order)

    @property
    def capacity(self) -> int:
        """The largest number of voxels that a share can have."""
        ordered = self._voxels[self._by_size]
        extra = int(ordered[0]) if len(ordered) % self.ranks else 0
        return int(ordered[: len(ordered) // self.ranks * self.ranks : self.ranks].sum()) + extra

    def describe(self) -> str:
        """The cases of a rank in words, for the log."""
        count, steps = len(self._voxels), self.steps
        least, rest = divmod(count, self.ranks)
        share = f"{least} or {least + 1}" if rest else str(least)
        return f"{share} of {count} training cases for each of {self.ranks} ranks, divided anew every {steps} steps,"

    def period(self, step: int) -> int:
        """The number of the period that a step belongs to."""
        return step // self.steps

    def share(self, period: int, rank: int) -> NDArray[np.int64]:
        """The indices of the cases of a rank.

        Args:
            period: its number.
            rank: of the share.
        """
        return self._shares(period)[rank]

    def case_of(self, step: int, k: int) -> int:
        """The index of the case of a sample.

        Args:
            step: of the optimizer.
            k: index of the sample within the global batch.
        """
        micro, within = divmod(k, self.micro_batch)
        accumulation, rank = divmod(micro, self.ranks)
        period, later = divmod(step, self.steps)
        sample = later * (self.global_batch // self.ranks) + accumulation * self.micro_batch + within
        share = self.share(period, rank)
        epoch, position = divmod(sample // self.samples_per_volume, len(share))
        return int(share[self._order(period, rank, epoch)[position]])

    def _draw_shares(self, period: int) -> list[NDArray[np.int64]]:
        count = len(self._voxels)
        groups, extra = divmod(count, self.ranks)
        words = random_bits(self.seed, period, 0, Purpose.SHARE, count + (groups + 1) * self.ranks)
        # Cases beyond a multiple of the number of ranks are drawn among all, so that no case is favoured.
        drawn = np.zeros(count, np.bool_)
        drawn[np.argsort(words[:count], kind="stable")[:extra]] = True
        rows = self._by_size[~drawn[self._by_size]].reshape(groups, self.ranks)
        keys = words[count:].reshape(groups + 1, self.ranks)
        shares = np.take_along_axis(rows, np.argsort(keys[:-1], axis=1, kind="stable"), axis=1)
        receivers = np.argsort(keys[-1], kind="stable")[:extra]
        further = dict(zip(receivers.tolist(), np.flatnonzero(drawn).tolist(), strict=True))
        return [
            np.append(shares[:, rank], further[rank]) if rank in further else shares[:, rank].copy()
            for rank in range(self.ranks)
        ]

    def _draw_order(self, period: int, rank: int, epoch: int) -> NDArray[np.int64]:
        words = random_bits(
            self.seed, period, epoch * self.ranks + rank, Purpose.SHARE_ORDER, len(self.share(period, rank))
        )
        return np.argsort(words, kind="stable")
