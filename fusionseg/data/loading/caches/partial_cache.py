"""Caches that hold some of the cases in memory: the share of a rank, or a window that moves on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod

import numpy as np
import torch
from torch import Tensor

from fusionseg.config.data.cache import CacheConfig
from fusionseg.data.loading.caches.case_cache import Box
from fusionseg.data.loading.caches.disk_cache import DiskCache
from fusionseg.data.loading.caches.flat_cache import FlatCache, backgrounds
from fusionseg.data.loading.sampling.case_shares import CaseShares
from fusionseg.data.preprocessing.store import Store
from fusionseg.observability.ranges import progressed


class PartialCache(FlatCache):
    """Some of the cases are in memory. The others, such as those of the validation, are read from the disk.

    Args:
        cases: each by its store and its name there; their order gives the case indices.
        config: the section `cache`.
        device: of the volumes in memory.
        capacity: number of voxels that are in memory at most.

    Raises:
        UserError: the cases differ in their number of channels.
    """

    def __init__(
        self, cases: Sequence[tuple[Store, str]], config: CacheConfig, device: torch.device, capacity: int
    ) -> None:
        super().__init__(cases, config, device)
        self._cases = list(cases)
        self._disk = DiskCache(cases, config)
        self.plan_cases = self._disk.plan_cases
        self._begin = backgrounds(len(cases))
        total = self._begin + capacity
        self.first_voxel = np.full(len(cases), -1, np.int64)
        self.image = torch.empty((self.channels, total), dtype=self.image_dtype, device=device)
        self.label = torch.zeros(total, dtype=torch.uint8, device=device)
        self.image[:, : len(cases)].copy_(self._background_levels.T)
        self._threads = config.read_threads
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="cache")

    def volume(self, case_index: int) -> tuple[Tensor, Tensor]:
        """A whole case, as views of the cache or from the disk; see `CaseCache`."""
        held = self.first_voxel[case_index] >= 0
        return super().volume(case_index) if held else self._disk.volume(case_index)

    def box(self, case_index: int, box: Box) -> tuple[Tensor, Tensor]:
        """A part of a case, as views of the cache or from the disk; see `CaseCache`."""
        held = self.first_voxel[case_index] >= 0
        return super().box(case_index, box) if held else self._disk.box(case_index, box)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _load(self, case_index: int) -> tuple[Tensor, Tensor | None]:
        """Read image (C, N) and label (N,) of a case, and verify their checksums."""
        store, name = self._cases[case_index]
        stored, label, _ = store.load(name)
        image = torch.from_numpy(self._converted(stored)).view(self.channels, -1)
        return image, None if label is None else torch.from_numpy(np.array(label)).view(-1)

    def _write(self, first: int, image: Tensor, label: Tensor | None) -> None:
        """Write a case to a position, without waiting for the device."""
        size = image.shape[1]
        for held, channel in zip(self.image, image, strict=True):  # each is contiguous, so that one copy is enough
            held[first : first + size].copy_(channel, non_blocking=True)
        if label is None:
            self.label[first : first + size].zero_()
        else:
            self.label[first : first + size].copy_(label, non_blocking=True)

    def _fill(self, case_indices: Sequence[int]) -> int:
        """Replace what is in memory by some cases, one after the other; return the position after the last one."""
        self.first_voxel[:] = -1
        position = self._begin
        for case_index, (image, label) in zip(case_indices, self._loaded(case_indices), strict=True):
            self._write(position, image, label)
            self.first_voxel[case_index] = position
            position += image.shape[1]
            progressed()
        return position

    def _loaded(self, case_indices: Sequence[int]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Load cases by threads, in their order; few of them are in memory at a time."""
        coming: deque[Future[tuple[Tensor, Tensor | None]]] = deque()
        for case_index in case_indices:
            coming.append(self._pool.submit(self._load, case_index))
            if len(coming) > self._threads:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()

    def _voxels(self, case_index: int) -> int:
        return prod(self.records[case_index].shape)


class ShareCache(PartialCache):
    """The share of a rank. It is loaded when its period begins.

    Args:
        cases: each by its store and its name there; the training cases are the first ones.
        config: the section `cache`.
        device: of the volumes in memory.
        shares: of all ranks.
        rank: of this share.

    Raises:
        UserError: the cases differ in their number of channels.
    """

    def __init__(
        self,
        cases: Sequence[tuple[Store, str]],
        config: CacheConfig,
        device: torch.device,
        shares: CaseShares,
        rank: int,
    ) -> None:
        super().__init__(cases, config, device, shares.capacity)
        self._shares = shares
        self._rank = rank
        self._held: list[int] = []

    def advance(self, step: int) -> None:
        """Load the share that a step needs, if another one is in memory; see `CaseCache`."""
        share = sorted(self._shares.share(self._shares.period(step), self._rank).tolist())
        if share != self._held:
            self._held = []
            self._fill(share)
            self._held = share
