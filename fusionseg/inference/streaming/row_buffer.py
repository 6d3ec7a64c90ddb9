"""The rows of a stream that are still needed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fusionseg.inference.streaming.logits import Rows
from fusionseg.inference.streaming.window_layout import Box


class RowBuffer:
    """Closed rows of a stream of logits. Rows are freed once they are not needed any more."""

    def __init__(self, rows: Iterator[Rows], axis: int, *, descending: bool) -> None:
        """Begin a stream.

        Args:
            rows: the stream.
            axis: of the stream.
            descending: whether the last rows come first.
        """
        self._rows = rows
        self._dim = axis + 1
        self._axis = axis
        self._descending = descending
        self._held: list[Rows] = []

    def advance(self, side: slice) -> None:
        """Read the stream up to some rows, and free those before them.

        Args:
            side: the rows that are needed, in voxels of the volume. Those of later calls are not before it in the order
                of the stream.
        """
        while not self._covers(side):
            self._free(side)  # before the next windows take memory
            self._held.append(next(self._rows))

    def take(self, box: Box) -> Tensor:
        """The logits (K, X, Y, Z) of a box within the rows of the last `advance`."""
        rows = box[self._axis]
        parts = []
        for held in sorted(self._held, key=lambda one: one.start):
            start, stop = max(rows.start, held.start), min(rows.stop, held.start + self._count(held))
            if start < stop:
                place = list(box)
                place[self._axis] = slice(start - held.start, stop - held.start)
                parts.append(held.logits[(slice(None), *place)])
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=self._dim)

    def _covers(self, side: slice) -> bool:
        if not self._held:
            return False
        last = self._held[-1]
        return last.start <= side.start if self._descending else last.start + self._count(last) >= side.stop

    def _free(self, side: slice) -> None:
        """Free the rows that come before those of `side`. A part of a block is copied, so that the block is freed."""
        kept = []
        for held in self._held:
            start, stop = held.start, held.start + self._count(held)
            first, last = (start, min(stop, side.stop)) if self._descending else (max(start, side.start), stop)
            if first >= last:
                continue
            if last - first < stop - start:
                held = Rows(first, held.logits.narrow(self._dim, first - start, last - first).clone())
            kept.append(held)
        self._held = kept

    def _count(self, rows: Rows) -> int:
        return rows.logits.shape[self._dim]
