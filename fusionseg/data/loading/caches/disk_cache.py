"""A cache without volumes in memory: the prepared arrays are mapped, and the parts of the next patches read ahead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionseg.config.data.cache import CacheConfig
from fusionseg.data.loading.caches.case_cache import Box, CaseCache
from fusionseg.data.loading.caches.plan_cases import plan_case_on_disk
from fusionseg.data.preprocessing.record import read_record
from fusionseg.data.preprocessing.store import Store
from fusionseg.utils.errors import UserError

_OPEN_CASES = 256
"""Cases whose files stay mapped. A process may have about 65 000 mapped files on Linux."""

Boxes = Mapping[tuple[int, tuple[int, ...]], tuple[Tensor, Tensor]]
"""Parts of cases in memory, by the index of the case and `bounds_of`."""


class DiskCache(CaseCache):
    """Prepared cases on disk. The samples are those of a cache in memory, to the last bit.

    Several threads may read from it. The pages that they read stay in the memory that no process uses, and all ranks
    of a node find them there.

    Args:
        cases: each by its store and its name there; their order gives the case indices.
        config: the section `cache`.

    Raises:
        UserError: the cases differ in their number of channels.
    """

    def __init__(self, cases: Sequence[tuple[Store, str]], config: CacheConfig) -> None:
        super().__init__(cases, config, torch.device("cpu"))
        self._cases = list(cases)
        self._mapped = lru_cache(maxsize=_OPEN_CASES)(self._map)
        self._positions = lru_cache(maxsize=_OPEN_CASES)(self._map_positions)
        self.plan_cases = [
            plan_case_on_disk(name, record, partial(self._positions, index))
            for index, (name, record) in enumerate(zip(self.names, self.records, strict=True))
        ]
        self.at_hand: Boxes = {}
        """Boxes that `box` takes from memory; the next micro-batch replaces them."""

    def volume(self, case_index: int) -> tuple[Tensor, Tensor]:
        """Read a whole case; see `CaseCache`."""
        return self.read(case_index, (slice(None), slice(None), slice(None)))

    def box(self, case_index: int, box: Box) -> tuple[Tensor, Tensor]:
        """A part of a case, from memory if it is at hand there; see `CaseCache`."""
        found = self.at_hand.get((case_index, bounds_of(box)))
        return self.read(case_index, box) if found is None else found

    def read(self, case_index: int, box: Box) -> tuple[Tensor, Tensor]:
        """Read a part of a case from the disk.

        Args:
            case_index: of the case.
            box: within the volume.

        Raises:
            UserError: the arrays cannot be read, or belong to another preparation of the case.
        """
        stored, label = self._mapped(case_index)
        image = torch.from_numpy(self._converted(stored[(slice(None), *box)]))
        if label is None:
            return image, torch.zeros(image.shape[1:], dtype=torch.uint8)
        return image, torch.from_numpy(np.array(label[box]))

    def _map(self, case_index: int) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
        store, name = self._cases[case_index]
        record = self.records[case_index]
        image = store.image(name)
        label = store.label(name) if record.labelled else None
        # The checksums would need the whole arrays. The record on disk tells whether they are of another preparation.
        on_disk = read_record(store.root, record.folder)
        fits = image.shape == (record.channels, *record.shape) and (label is None or label.shape == record.shape)
        if not fits or on_disk is None or on_disk.checksums != record.checksums:
            raise UserError(
                f"{store.root / record.folder}: the prepared arrays do not match their record (another process has"
                " prepared the case again); start again, and delete the folder if this remains"
            )
        return image, label

    def _map_positions(self, case_index: int) -> NDArray[np.int64]:
        store, name = self._cases[case_index]
        return store.foreground(name)


def bounds_of(box: Box) -> tuple[int, ...]:
    """The bounds of a box as numbers, for a key."""
    return tuple(bound for part in box for bound in (part.start, part.stop))
