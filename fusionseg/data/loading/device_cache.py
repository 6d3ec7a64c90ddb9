"""The device cache: all prepared cases as tensors on the training device.

The images of all cases lie in one tensor, and the labels in another. So there are two allocations for any number of
cases, and their size is that of `cache_bytes`. One position of both tensors belongs to the same voxel. The first
positions hold the background of each case, so that a patch that ends outside of a volume is read like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from math import prod

import numpy as np
import torch
from torch import Tensor

from fusionseg.config.data.cache import CacheConfig
from fusionseg.data.loading.caches.flat_cache import ALIGNMENT, FlatCache, backgrounds
from fusionseg.data.loading.caches.plan_cases import kept_positions, num_positions, plan_case
from fusionseg.data.preprocessing.store import PreparedCase, Store
from fusionseg.observability.ranges import progressed
from fusionseg.utils.read_threads import map_reads


def cache_bytes(cases: Sequence[PreparedCase], config: CacheConfig) -> int:
    """Size of a cache in bytes: images in the cache's type, labels in one byte a voxel.

    Args:
        cases: their records.
        config: the section `cache`.
    """
    return sum(prod(case.shape) * voxel_bytes(case, config) for case in cases)


def voxel_bytes(case: PreparedCase, config: CacheConfig) -> int:
    """Bytes of the images and the label of a voxel.

    Args:
        case: its record.
        config: the section `cache`.
    """
    return case.channels * torch.finfo(getattr(torch, config.dtype)).bits // 8 + 1


def positions_bytes(cases: Sequence[PreparedCase]) -> int:
    """Size of the positions of foreground in bytes, with room for the alignment of what follows.

    Args:
        cases: their records.
    """
    size = np.dtype(np.int64).itemsize * sum(map(num_positions, cases))
    return -(-size // ALIGNMENT) * ALIGNMENT


def shared_bytes(cases: Sequence[PreparedCase], config: CacheConfig) -> int:
    """Size of the memory that the ranks of a node may share: positions, `cache_bytes`, and the backgrounds.

    Args:
        cases: their records.
        config: the section `cache`.
    """
    first = backgrounds(len(cases)) * voxel_bytes(cases[0], config) if cases else 0
    return positions_bytes(cases) + cache_bytes(cases, config) + first


class DeviceCache(FlatCache):
    """Prepared cases in memory: all of them, on the training device or on the host.

    The positions of the foreground are in host memory. They take up to 160 kB for each class of a case.
    """

    def __init__(
        self,
        cases: Sequence[tuple[Store, str]],
        config: CacheConfig,
        device: torch.device,
        shared: Tensor | None = None,
        *,
        fills: bool = True,
    ) -> None:
        """Load cases.

        Args:
            cases: each by its store and its name there; their order gives the case indices.
            config: the section `cache`.
            device: of the cache.
            shared: `shared_bytes` of the host to use, (N,) uint8; None to allocate what is needed. A cache on another
                device has the positions there, and its own images and labels.
            fills: whether to write into the shared memory; otherwise another rank does so, and this one must wait for
                it before it reads.

        Raises:
            UserError: arrays do not match their record, or the cases differ in their number of channels.
        """
        super().__init__(cases, config, device)
        self.first_voxel = backgrounds(len(cases)) + np.cumsum([0, *(prod(record.shape) for record in self.records)])
        total = int(self.first_voxel[-1])
        size = positions_bytes(self.records)
        memory = np.empty(size, np.uint8) if shared is None else shared[:size].numpy()
        positions = memory.view(np.int64)
        bounds = np.cumsum([0, *map(num_positions, self.records)]).tolist()
        self._positions = [positions[first:last] for first, last in pairwise(bounds)]
        self.plan_cases = [plan_case(*one) for one in zip(self.names, self.records, self._positions, strict=True)]
        own_voxels = shared is None or device.type != "cpu"
        if own_voxels:
            self.image = torch.empty((self.channels, total), dtype=self.image_dtype, device=device)
            self.label = torch.zeros(total, dtype=torch.uint8, device=device)
        else:
            assert shared is not None
            images, self.label = shared[size:].split([shared.numel() - size - total, total])
            self.image = images.view(self.image_dtype).view(self.channels, total)
        if fills or own_voxels:
            load = partial(self._load, cases, fills_positions=fills)
            for _ in map_reads(load, range(len(cases)), config.read_threads):
                progressed()
            self.image[:, : len(cases)].copy_(self._background_levels.T)

    def _load(self, cases: Sequence[tuple[Store, str]], case_index: int, *, fills_positions: bool) -> None:
        """Read a case into the memory. Several threads call it, each for other cases."""
        store, name = cases[case_index]
        stored, label, foreground = store.load(name)
        part = slice(int(self.first_voxel[case_index]), int(self.first_voxel[case_index + 1]))
        image = self._converted(stored)
        self.image[:, part].copy_(torch.from_numpy(image.reshape(self.channels, -1)))
        if label is not None:
            self.label[part].copy_(torch.from_numpy(np.array(label).reshape(-1)))
        if fills_positions:
            self._positions[case_index][:] = kept_positions(self.records[case_index], foreground)

    @property
    def nbytes(self) -> int:
        """Size of the cases in bytes, without the backgrounds."""
        first = int(self.first_voxel[0])
        return self.image[:, first:].nbytes + self.label[first:].nbytes
