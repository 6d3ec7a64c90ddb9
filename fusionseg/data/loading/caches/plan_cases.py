"""Prepared cases as the sampling plan sees them, with the positions of their foreground in memory or on disk."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.loading.sampling.patch_centres import PlanCase
from fusionseg.data.preprocessing.store import PreparedCase


def plan_case(name: str, record: PreparedCase, positions: NDArray[np.int64]) -> PlanCase:
    """A case whose positions are in memory. Classes that it does not annotate are no centres of patches.

    Args:
        name: of the case.
        record: of the case.
        positions: (`num_positions`,), as `kept_positions` gives them; they need not be filled yet. They are not copied.
    """
    offsets = _offsets(record)
    annotated = None if record.annotated_voxels is None else positions[offsets[-1] :]
    return PlanCase(name, record.shape, positions[: offsets[-1]], offsets, record.centre_classes, annotated)


def num_positions(record: PreparedCase) -> int:
    """Number of positions that a training draws from: of the classes, and of annotated voxels.

    Args:
        record: of the case.
    """
    return _offsets(record)[-1] + (record.annotated_voxels or 0)


def kept_positions(record: PreparedCase, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """The positions that a training draws from, (`num_positions`,).

    Args:
        record: of the case.
        positions: the content of its foreground.npy.
    """
    kept = [positions[first:last] for first, last in _kept_parts(record)]
    return np.concatenate([positions[:0], *kept, positions[record.class_offsets[-1] :]])


def plan_case_on_disk(name: str, record: PreparedCase, read: Callable[[], NDArray[np.int64]]) -> PlanCase:
    """The same case as `plan_case` makes, without its positions in memory.

    Args:
        name: of the case.
        record: of the case.
        read: gives the content of its foreground.npy, memory-mapped.
    """
    annotated = None
    if record.annotated_voxels is not None:
        first = record.class_offsets[-1]
        annotated = PositionsOnDisk(read, [(first, first + record.annotated_voxels)])
    return PlanCase(
        name,
        record.shape,
        PositionsOnDisk(read, _kept_parts(record)),
        _offsets(record),
        record.centre_classes,
        annotated,
    )


class PositionsOnDisk:
    """Flat voxel indices in a file: some of its parts, one after the other.

    Args:
        read: gives the content of the file, memory-mapped.
        parts: the first entry and the last entry plus one of each part.
    """

    def __init__(self, read: Callable[[], NDArray[np.int64]], parts: list[tuple[int, int]]) -> None:
        self._read = read
        self._parts = parts
        self._starts = np.cumsum([0, *(last - first for first, last in parts)]).tolist()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> np.int64:
        part = bisect_right(self._starts, index) - 1
        position: np.int64 = self._read()[self._parts[part][0] + index - self._starts[part]]
        return position


def _kept_parts(record: PreparedCase) -> list[tuple[int, int]]:
    """The parts of foreground.npy with the classes that patches are centred on."""
    bounds = zip(record.class_offsets, record.class_offsets[1:], strict=False)
    parts = dict(zip(record.classes, bounds, strict=True))
    return [parts[index] for index in record.centre_classes]


def _offsets(record: PreparedCase) -> tuple[int, ...]:
    return tuple(int(offset) for offset in np.cumsum([0, *(last - first for first, last in _kept_parts(record))]))
