"""Arithmetic of time intervals: nesting of events, union, gaps and overlap."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from fusionseg.observability.profiles.timeline import DeviceEvent, HostEvent, Thread

Interval = tuple[int, int]
"""Start and end in ns."""


class Nesting:
    """Nesting of the events of each thread: parents, self times, and the innermost event at any time."""

    def __init__(self, events: Sequence[HostEvent]) -> None:
        self.events = events
        self.parent: list[int | None] = [None] * len(events)
        """Index of the enclosing event of each event; None at the top level."""
        self.self_ns = [0] * len(events)
        """Duration of each event without the events nested in it, in ns."""
        self._starts: dict[Thread, list[int]] = {}
        self._segments: dict[Thread, list[tuple[int, int, int]]] = {}
        by_thread: dict[Thread, list[int]] = defaultdict(list)
        for index, event in enumerate(events):
            by_thread[event.thread].append(index)
        for thread, indices in by_thread.items():
            segments = self._sweep(sorted(indices, key=lambda i: (events[i].start_ns, -events[i].end_ns)))
            self._segments[thread] = segments
            self._starts[thread] = [start for start, _, _ in segments]

    def overlapping(self, thread: Thread | None, interval: Interval) -> Iterator[tuple[int, int, int]]:
        """Yield (start, end, index of the innermost event) for each part of an interval with an open event."""
        if thread is None or thread not in self._segments:
            return
        segments = self._segments[thread]
        for at in range(max(0, bisect_right(self._starts[thread], interval[0]) - 1), len(segments)):
            start, end, index = segments[at]
            if start >= interval[1]:
                return
            if end > interval[0]:
                yield max(start, interval[0]), min(end, interval[1]), index

    def innermost(self, thread: Thread | None, time_ns: int) -> int | None:
        """Index of the innermost event that is open on a thread at a time; None if there is none."""
        return next((index for _, _, index in self.overlapping(thread, (time_ns, time_ns + 1))), None)

    def with_ancestors(self, index: int | None) -> Iterator[int]:
        """Yield the index of an event, of its parent, and so on to the top level."""
        while index is not None:
            yield index
            index = self.parent[index]

    def _sweep(self, indices: list[int]) -> list[tuple[int, int, int]]:
        """Cut the time of one thread into segments with the same innermost event.

        Args:
            indices: events of the thread by start, the longer one first at equal starts.

        Returns:
            (start, end, index of the innermost event), in order.
        """
        segments: list[tuple[int, int, int]] = []
        ends: dict[int, int] = {}
        stack: list[int] = []
        cursor = 0

        def emit(until: int) -> None:
            nonlocal cursor
            if stack and until > cursor:
                segments.append((cursor, until, stack[-1]))
                self.self_ns[stack[-1]] += until - cursor
            cursor = max(cursor, until)

        for index in indices:
            event = self.events[index]
            # Times are rounded, and NVTX ranges of start and end need not nest. An event of which at most half lies
            # inside the open event therefore follows it instead of being nested in it.
            while stack and ends[stack[-1]] - event.start_ns <= max(0, event.end_ns - ends[stack[-1]]):
                emit(min(ends[stack[-1]], event.start_ns))
                stack.pop()
            emit(event.start_ns)
            ends[index] = min(event.end_ns, ends[stack[-1]]) if stack else event.end_ns
            self.parent[index] = stack[-1] if stack else None
            stack.append(index)
        while stack:
            emit(ends[stack[-1]])
            stack.pop()
        return segments


def intervals_of(events: Iterable[DeviceEvent | HostEvent]) -> list[Interval]:
    """Intervals of events, in the order of the events."""
    return [(event.start_ns, event.end_ns) for event in events]


def union(intervals: Iterable[Interval], bounds: Interval) -> list[Interval]:
    """Union of intervals, as disjoint intervals in order.

    Args:
        intervals: may overlap, in any order.
        bounds: parts of the intervals outside are cut off.
    """
    first, last = bounds
    disjoint: list[Interval] = []
    for start, end in sorted((max(start, first), min(end, last)) for start, end in intervals):
        if start >= end:
            continue
        if disjoint and start <= disjoint[-1][1]:
            disjoint[-1] = (disjoint[-1][0], max(disjoint[-1][1], end))
        else:
            disjoint.append((start, end))
    return disjoint


def total_length(intervals: Iterable[Interval]) -> int:
    """Sum of the lengths of intervals in ns."""
    return sum(end - start for start, end in intervals)


def gaps(disjoint: Sequence[Interval], bounds: Interval) -> list[Interval]:
    """Parts that a union of intervals leaves uncovered.

    Args:
        disjoint: result of `union` with the same bounds.
        bounds: interval in which gaps are looked for.
    """
    edges = [bounds[0], *(edge for interval in disjoint for edge in interval), bounds[1]]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]


def overlap_length(first: Sequence[Interval], second: Sequence[Interval]) -> int:
    """Length of the intersection of two unions of intervals in ns."""
    total = i = j = 0
    while i < len(first) and j < len(second):
        total += max(0, min(first[i][1], second[j][1]) - max(first[i][0], second[j][0]))
        if first[i][1] <= second[j][1]:
            i += 1
        else:
            j += 1
    return total
