"""The device cache: all prepared cases as tensors on the training device.

The images of all cases lie in one tensor, and the labels in another. So there are two allocations for any number of
cases, and their size is that of `cache_bytes`. One position of both tensors belongs to the same voxel. The first
positions hold the background of each case, so that a patch that ends outside of a volume is read like any other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionseg.config.data.cache import CacheConfig
from fusionseg.data.loading.sampling.patch_centres import PlanCase
from fusionseg.data.preprocessing.store import PreparedCase, Store
from fusionseg.utils.errors import UserError

GB = 1e9
_ALIGNMENT = 64
"""The first voxel lies at a multiple of it, for aligned reads."""


def cache_bytes(cases: Sequence[PreparedCase], config: CacheConfig) -> int:
    """Size of a cache in bytes: images in the cache's type, labels in one byte a voxel.

    Args:
        cases: their records.
        config: the section `cache`.
    """
    image = torch.finfo(getattr(torch, config.dtype)).bits // 8
    return sum(prod(case.shape) * (case.channels * image + 1) for case in cases)


def allocated_bytes(cases: Sequence[PreparedCase], config: CacheConfig) -> int:
    """Size of the memory that a cache allocates: `cache_bytes`, and the positions of the backgrounds.

    Args:
        cases: their records.
        config: the section `cache`.
    """
    image = torch.finfo(getattr(torch, config.dtype)).bits // 8
    channels = cases[0].channels if cases else 1
    return cache_bytes(cases, config) + _backgrounds(len(cases)) * (channels * image + 1)


def _backgrounds(cases: int) -> int:
    """Number of positions before the first voxel."""
    return -(-cases // _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True)
class Placement:
    """The device of the cache, and the reason for the choice in words, for a message."""

    device: torch.device
    reason: str


def place_cache(
    needed: int,
    config: CacheConfig,
    training_device: torch.device,
    *,
    accelerator_free: int,
    host_free: int,
    ranks_on_host: int = 1,
    shared: bool = False,
) -> Placement:
    """Choose the memory that holds the cache.

    Args:
        needed: bytes for one rank.
        config: the section `cache`.
        training_device: of this rank.
        accelerator_free: free bytes of the training device.
        host_free: free bytes of the host.
        ranks_on_host: number of ranks that share the host's memory.
        shared: the ranks of a host share one cache there; otherwise each has its own.

    Raises:
        UserError: the cache does not fit in any memory that `cache.device` allows.
    """
    share = f"{config.memory_fraction:.3g} of it (cache.memory_fraction)"
    host_needed = needed if shared else needed * ranks_on_host
    ranks = f"{ranks_on_host} rank{'s' if ranks_on_host > 1 else ''}"
    on_host = (
        f"{host_needed / GB:.2f} GB {'shared by' if shared else 'for'} {ranks} of"
        f" {host_free / GB:.1f} GB host memory free, {share} allowed"
    )
    fits_host = host_needed <= host_free * config.memory_fraction
    smaller = (
        "train on smaller volumes (data.crop_foreground, data.spacing), set cache.dtype: float16,"
        " or raise cache.memory_fraction"
    )
    accelerated = training_device.type != "cpu"
    on_device = f"{needed / GB:.2f} GB of {accelerator_free / GB:.1f} GB free on {training_device}, {share} allowed"
    fits_device = accelerated and needed <= accelerator_free * config.memory_fraction
    if config.device == "accelerator" and not accelerated:
        raise UserError("cache.device: is accelerator, but this run trains on the CPU; set it to auto or host")
    if fits_device and config.device != "host":
        return Placement(training_device, on_device)
    if config.device == "accelerator":
        raise UserError(
            f"cache.device: does not fit the accelerator ({on_device}); set it to auto to use the host, or {smaller}"
        )
    if not fits_host:
        also = f"neither on the device ({on_device}) nor " if accelerated and config.device == "auto" else ""
        raise UserError(f"cache: does not fit, {also}on the host ({on_host}); {smaller}")
    if accelerated and config.device == "auto":
        return Placement(torch.device("cpu"), f"falls back to the host, because it needs {on_device}; {on_host}")
    return Placement(torch.device("cpu"), on_host)


class DeviceCache:
    """Prepared cases in memory, the only source of data of the training loop."""

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
        self.device = device
        self.records = [store.cases[name] for store, name in cases]
        self.names = _unique_names(cases)
        self.image_dtype: torch.dtype = getattr(torch, config.dtype)
        voxels = [prod(record.shape) for record in self.records]
        channels = {record.channels for record in self.records}
        if len(channels) > 1:
            raise UserError(f"{cases[0][0].root}: the cases differ in their number of channels: {sorted(channels)}")
        self.channels = channels.pop() if channels else 1
        self.first_voxel = _backgrounds(len(cases)) + np.cumsum([0, *voxels])
        """Position of the first voxel of each case. Position i is the background of case i."""
        total = int(self.first_voxel[-1])
        if memory is None:
            self.image = torch.empty((self.channels, total), dtype=self.image_dtype, device=device)
            self.label = torch.zeros(total, dtype=torch.uint8, device=device)
        else:
            images, self.label = memory.split([memory.numel() - total, total])
            self.image = images.view(self.image_dtype).view(self.channels, total)
        self.plan_cases: list[PlanCase] = []
        limit = float(np.finfo(config.dtype).max)  # values of a float32 store may be too large for float16
        for case_index, (store, name) in enumerate(cases):
            record = self.records[case_index]
            first, size = int(self.first_voxel[case_index]), voxels[case_index]
            stored, label, foreground = store.load(name)
            if fills:
                image = np.clip(np.asarray(stored, np.float32), -limit, limit).astype(config.dtype)
                self.image[:, first : first + size].copy_(torch.from_numpy(image.reshape(self.channels, size)))
            if fills and label is not None:
                self.label[first : first + size].copy_(torch.from_numpy(np.array(label).reshape(-1)))
            self.plan_cases.append(_plan_case(self.names[case_index], record, np.array(foreground)))
        # In the cache's type, so that the values outside of a volume are those of the background inside of it.
        background = torch.tensor([record.background for record in self.records]).view(-1, self.channels)
        background = background.clamp_(-limit, limit).to(self.image_dtype)
        if fills:
            self.image[:, : len(cases)].copy_(background.T)
        self._background = background.float().view(-1, self.channels, 1, 1, 1).to(device)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def nbytes(self) -> int:
        """Size of the cases in bytes, without the backgrounds."""
        first = int(self.first_voxel[0])
        return self.image[:, first:].nbytes + self.label[first:].nbytes

    def volume(self, case_index: int) -> tuple[Tensor, Tensor]:
        """A whole case, as views of the cache.

        Args:
            case_index: of the case.

        Returns:
            Image (C, X, Y, Z) in the cache's type, label (X, Y, Z) uint8.
        """
        first, size = int(self.first_voxel[case_index]), prod(self.records[case_index].shape)
        shape = self.records[case_index].shape
        image = self.image[:, first : first + size].view(self.channels, *shape)
        return image, self.label[first : first + size].view(shape)

    def background(self, case_index: int) -> Tensor:
        """The values outside the volume of a case: (C, 1, 1, 1).

        Args:
            case_index: of the case.
        """
        return self._background[case_index]


def _plan_case(name: str, record: PreparedCase, positions: NDArray[np.int64]) -> PlanCase:
    """A case for the sampling plan. Classes that the case does not annotate are no centres of patches.

    Args:
        name: of the case.
        record: of the case.
        positions: the content of its foreground.npy.
    """
    foreground, annotated = np.split(positions, [record.class_offsets[-1]])
    bounds = zip(record.class_offsets, record.class_offsets[1:], strict=False)
    parts = {index: foreground[slice(*of_class)] for index, of_class in zip(record.classes, bounds, strict=True)}
    kept = [parts[index] for index in record.centre_classes]
    return PlanCase(
        name,
        record.shape,
        np.concatenate([foreground[:0], *kept]),
        tuple(int(offset) for offset in np.cumsum([0, *map(len, kept)])),
        record.centre_classes,
        None if record.annotated_voxels is None else annotated,
    )


def _unique_names(cases: Sequence[tuple[Store, str]]) -> list[str]:
    """The names of the cases: CASE, or DATASET/CASE with several stores; DATASET-2 if two data sets have one name."""
    prefixes: dict[Path, str] = {}
    count: Counter[str] = Counter()
    for store, _ in cases:
        if store.root not in prefixes:
            count[store.name] += 1
            prefixes[store.root] = f"{store.name}-{count[store.name]}" if count[store.name] > 1 else store.name
    return [f"{prefixes[store.root]}/{name}" if len(prefixes) > 1 else name for store, name in cases]
