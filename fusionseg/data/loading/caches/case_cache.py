"""The base of all caches: the cases by their indices, their names, records and backgrounds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionseg.config.data.cache import CacheConfig
from fusionseg.data.loading.sampling.patch_centres import PlanCase
from fusionseg.data.preprocessing.store import Store
from fusionseg.utils.errors import UserError

Box: TypeAlias = tuple[slice, slice, slice]
"""A part of a volume, by its first and its last voxel plus one along each axis."""


class CaseCache(ABC):
    """Prepared cases, the only source of data of the training loop.

    Args:
        cases: each by its store and its name there; their order gives the case indices.
        config: the section `cache`.
        device: of the cache.

    Raises:
        UserError: the cases differ in their number of channels.
    """

    plan_cases: list[PlanCase]
    """The cases as the sampling plan sees them."""

    def __init__(self, cases: Sequence[tuple[Store, str]], config: CacheConfig, device: torch.device) -> None:
        self.device = device
        self.records = [store.cases[name] for store, name in cases]
        self.names = _unique_names(cases)
        self.image_dtype: torch.dtype = getattr(torch, config.dtype)
        channels = {record.channels for record in self.records}
        if len(channels) > 1:
            raise UserError(f"{cases[0][0].root}: the cases differ in their number of channels: {sorted(channels)}")
        self.channels = channels.pop() if channels else 1
        self._type = np.dtype(config.dtype)
        # In the cache's type, so that the values outside of a volume are those of the background inside of it.
        limit = _limit(self._type)
        values = np.array([record.background for record in self.records], np.float32).reshape(-1, self.channels)
        levels = np.clip(values, -limit, limit).astype(self._type)
        self.background_values: NDArray[np.float32] = levels.astype(np.float32)
        """(cases, C), the values outside the volumes, on the host."""
        self._background_levels = torch.from_numpy(levels)
        self._background = self._background_levels.float().view(-1, self.channels, 1, 1, 1).to(device)

    def __len__(self) -> int:
        return len(self.records)

    @abstractmethod
    def volume(self, case_index: int) -> tuple[Tensor, Tensor]:
        """A whole case.

        Args:
            case_index: of the case.

        Returns:
            Image (C, X, Y, Z) in the cache's type, label (X, Y, Z) uint8. They may be views: do not change them.
        """

    def box(self, case_index: int, box: Box) -> tuple[Tensor, Tensor]:
        """A part of a case.

        Args:
            case_index: of the case.
            box: within the volume.

        Returns:
            Image (C, X, Y, Z) in the cache's type, label (X, Y, Z) uint8. They may be views: do not change them.
        """
        image, label = self.volume(case_index)
        return image[(slice(None), *box)], label[box]

    def advance(self, step: int) -> None:  # noqa: B027
        """Bring the cases that the samples of a step need into memory, if the cache holds only some.

        Args:
            step: of the optimizer; any step, in any order.
        """

    def close(self) -> None:  # noqa: B027
        """End what runs in the background."""

    def background(self, case_index: int) -> Tensor:
        """The values outside the volume of a case: (C, 1, 1, 1).

        Args:
            case_index: of the case.
        """
        return self._background[case_index]

    def _converted(self, stored: NDArray[Any]) -> NDArray[Any]:
        """The values of a stored image in the type of the cache, in memory of their own."""
        if stored.dtype == self._type:
            return np.array(stored)
        limit = _limit(self._type)  # values of a float32 store may be too large for float16
        return np.clip(np.asarray(stored, np.float32), -limit, limit).astype(self._type)


def _limit(dtype: np.dtype[Any]) -> float:
    return float(np.finfo(dtype).max)


def _unique_names(cases: Sequence[tuple[Store, str]]) -> list[str]:
    """The names of the cases: CASE, or DATASET/CASE with several stores; DATASET-2 if two data sets have one name."""
    prefixes: dict[Path, str] = {}
    count: Counter[str] = Counter()
    for store, _ in cases:
        if store.root not in prefixes:
            count[store.name] += 1
            prefixes[store.root] = f"{store.name}-{count[store.name]}" if count[store.name] > 1 else store.name
    return [f"{prefixes[store.root]}/{name}" if len(prefixes) > 1 else name for store, name in cases]
