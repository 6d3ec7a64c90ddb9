"""The device cache: all prepared cases as tensors on the training device.

The images of all cases lie in one tensor, and the labels in another. So there are two allocations for any number of
cases, and their size is that of `cache_bytes`. One position of both tensors belongs to the same voxel. The first
positions hold the background of each case, so that a patch that ends outside of a volume is read like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from fusionseg.config.data.cache import CacheConfig
from fusionseg.data.loading.caches.flat_cache import FlatCache, backgrounds
from fusionseg.data.loading.caches.plan_cases import plan_case
from fusionseg.data.preprocessing.store import PreparedCase, Store


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


def allocated_bytes(cases: Sequence[PreparedCase], config: CacheConfig) -> int:
    """Size of the memory that a cache allocates: `cache_bytes`, and the positions of the backgrounds.

    Args:
        cases: their records.
        config: the section `cache`.
    """
    return cache_bytes(cases, config) + (backgrounds(len(cases)) * voxel_bytes(cases[0], config) if cases else 0)


class DeviceCache(FlatCache):
    """Prepared cases in memory: all of them, on the training device or on the host."""

    def __init__(
        self,
        cases: Sequence[tuple[Store, str]],
        config: CacheConfig,
        device: torch.device,
        memory: Tensor | None = None,
        *,
        fills: bool = True,
    ) -> None:
        """Load cases.

        Args:
            cases: each by its store and its name there; their order gives the case indices.
            config: the section `cache`.
            device: of the cache.
            memory: `allocated_bytes` of the device to use, (N,) uint8; None to allocate them.
            fills: whether to write the cases into the memory; otherwise another rank does so, and this one must wait
                for it before it reads.

        Raises:
            UserError: arrays do not match their record, or the cases differ in their number of channels.
        """
        super().__init__(cases, config, device)
        voxels = [prod(record.shape) for record in self.records]
        self.first_voxel = backgrounds(len(cases)) + np.cumsum([0, *voxels])
        total = int(self.first_voxel[-1])
        if memory is None:
            self.image = torch.empty((self.channels, total), dtype=self.image_dtype, device=device)
            self.label = torch.zeros(total, dtype=torch.uint8, device=device)
        else:
            images, self.label = memory.split([memory.numel() - total, total])
            self.image = images.view(self.image_dtype).view(self.channels, total)
        self.plan_cases = []
        for case_index, (store, name) in enumerate(cases):
            record = self.records[case_index]
            first, size = int(self.first_voxel[case_index]), voxels[case_index]
            stored, label, foreground = store.load(name)
            if fills:
                image = self._converted(stored)
                self.image[:, first : first + size].copy_(torch.from_numpy(image.reshape(self.channels, size)))
            if fills and label is not None:
                self.label[first : first + size].copy_(torch.from_numpy(np.array(label).reshape(-1)))
            self.plan_cases.append(plan_case(self.names[case_index], record, np.array(foreground)))
        if fills:
            self.image[:, : len(cases)].copy_(self._background_levels.T)

    @property
    def nbytes(self) -> int:
        """Size of the cases in bytes, without the backgrounds."""
        first = int(self.first_voxel[0])
        return self.image[:, first:].nbytes + self.label[first:].nbytes
