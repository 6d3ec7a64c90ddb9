"""A cache that holds a window of the cases, some of which are replaced in the background while others are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass

import torch

from fusionseg.config.data.cache import CacheConfig
from fusionseg.data.loading.caches.partial_cache import PartialCache
from fusionseg.data.loading.sampling.case_window import CaseWindow
from fusionseg.data.preprocessing.store import Store
from fusionseg.observability.ranges import progressed


@dataclass(frozen=True)
class _Entering:
    """A case that is being loaded for the next rotation."""

    case_index: int
    position: int
    loaded: Future[torch.cuda.Event | None]
    """The event on a GPU after which the case is there."""


class WindowCache(PartialCache):
    """The cases of a window, in a ring: the cases of the next rotation are written behind the newest ones.

    Threads read the entering cases. On a GPU they are copied from pinned memory by a stream of their own, which waits
    until the steps before have been computed, because the place of an entering case may be that of one that has left.

    Args:
        cases: each by its store and its name there; the training cases are the first ones.
        config: the section `cache`.
        device: of the volumes in memory.
        window: the cases of each rotation.

    Raises:
        UserError: the cases differ in their number of channels.
    """

    def __init__(
        self, cases: Sequence[tuple[Store, str]], config: CacheConfig, device: torch.device, window: CaseWindow
    ) -> None:
        super().__init__(cases, config, device, window.capacity)
        self._window = window
        self._rotation: int | None = None
        self._head = self._begin
        """The position behind the newest case."""
        self._entering: list[_Entering] = []
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def advance(self, step: int) -> None:
        """Bring the window of a step into memory, and begin to load what the next rotation needs; see `CaseCache`."""
        rotation = self._window.rotation(step)
        if rotation == self._rotation:
            return
        if self._rotation is not None and rotation == self._rotation + 1:
            self._replace(self._rotation)
        else:
            for one in self._entering:
                wait([one.loaded])
                progressed()
            if self._stream is not None:
                torch.cuda.current_stream(self.device).wait_stream(self._stream)
            self._head = self._fill(self._window.cases(rotation).tolist())
        self._rotation = rotation
        self._load_next(rotation)

    def _replace(self, rotation: int) -> None:
        """Wait for the entering cases, and forget those that leave after a rotation."""
        for one in self._entering:
            event = one.loaded.result()
            progressed()
            if event is not None:
                torch.cuda.current_stream(self.device).wait_event(event)
        self.first_voxel[self._window.cases(rotation)[: self._window.replaced]] = -1
        for one in self._entering:
            self.first_voxel[one.case_index] = one.position

    def _load_next(self, rotation: int) -> None:
        """Begin to load the cases that enter after a rotation."""
        computed = None if self._stream is None else torch.cuda.current_stream(self.device).record_event()
        oldest = int(self.first_voxel[self._window.cases(rotation)[0]])
        entering = self._window.cases(rotation + 1)[self._window.size - self._window.replaced :].tolist()
        self._entering = []
        for case_index in entering:
            position = self._place(self._voxels(case_index), oldest)
            future = self._pool.submit(self._bring, case_index, position, computed)
            self._entering.append(_Entering(case_index, position, future))

    def _place(self, size: int, oldest: int) -> int:
        """Take the next place in the ring; the capacity is such that it does not reach the oldest case."""
        end = self.image.shape[1] if self._head >= oldest else oldest
        if self._head >= oldest and self._head + size > end:
            self._head, end = self._begin, oldest
        position, self._head = self._head, self._head + size
        assert self._head <= end, "the ring is too small"
        return position

    def _bring(self, case_index: int, position: int, computed: torch.cuda.Event | None) -> torch.cuda.Event | None:
        """Load a case in the background."""
        image, label = self._load(case_index)
        if self._stream is None or computed is None:
            self._write(position, image, label)
            return None
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(computed)
            self._write(position, image.pin_memory(), None if label is None else label.pin_memory())
            return self._stream.record_event()
