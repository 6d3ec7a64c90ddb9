"""Arithmetic of spans of time: how they nest, what several cover together, where there is none."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from fusionseg.observability.profiles.timeline import Span, Thread

Interval = tuple[int, int]


class Nesting:
    """How the spans of each thread lie in one another, and which is innermost at any time."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.spans = spans
        self.parent: list[int | None] = [None] * len(spans)
        """For each span the index of the one around it."""
        self.self_ns = [0] * len(spans)
        """For each span its time without that of the spans inside it."""
        self._starts: dict[Thread, list[int]] = {}
        self._segments: dict[Thread, list[tuple[int, int, int]]] = {}
        by_thread: dict[Thread, list[int]] = defaultdict(list)
        for index, span in enumerate(spans):
            by_thread[span.thread].append(index)
        for thread, indices in by_thread.items():
            segments = self._sweep(sorted(indices, key=lambda i: (spans[i].start_ns, -spans[i].end_ns)))
            self._segments[thread] = segments
            self._starts[thread] = [start for start, _, _ in segments]

    def overlapping(self, thread: Thread | None, interval: Interval) -> Iterator[tuple[int, int, int]]:
        """(start, end, index of the innermost span) in an interval, in order; nothing where no span is open."""
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
        """The index of the innermost span that is open on a thread."""
        return next((index for _, _, index in self.overlapping(thread, (time_ns, time_ns + 1))), None)

    def around(self, index: int | None) -> Iterator[int]:
        """The span itself, the one around it, and so on outwards."""
        while index is not None:
            yield index
            index = self.parent[index]

    def _sweep(self, indices: list[int]) -> list[tuple[int, int, int]]:
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
            span = self.spans[index]
            # Clocks are rounded, and ranges of start and end need not nest: a span that is more outside another than
            # inside it follows it.
            while stack and ends[stack[-1]] - span.start_ns <= max(0, span.end_ns - ends[stack[-1]]):
                emit(min(ends[stack[-1]], span.start_ns))
                stack.pop()
            emit(span.start_ns)
            ends[index] = min(span.end_ns, ends[stack[-1]]) if stack else span.end_ns
            self.parent[index] = stack[-1] if stack else None
            stack.append(index)
        while stack:
            emit(ends[stack[-1]])
            stack.pop()
        return segments


def merge(intervals: Iterable[Interval], window: Interval) -> list[Interval]:
    """What they cover together inside the window, as disjoint intervals in order."""
    first, last = window
    merged: list[Interval] = []
    for start, end in sorted((max(start, first), min(end, last)) for start, end in intervals):
        if start >= end:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def length(intervals: Iterable[Interval]) -> int:
    """Their sum in ns."""
    return sum(end - start for start, end in intervals)


def gaps(merged: Sequence[Interval], window: Interval) -> list[Interval]:
    """The parts of the window that merged intervals leave free."""
    edges = [window[0], *(edge for interval in merged for edge in interval), window[1]]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]


def common(first: Sequence[Interval], second: Sequence[Interval]) -> int:
    """How long two lists of merged intervals overlap, in ns."""
    total = i = j = 0
    while i < len(first) and j < len(second):
        total += max(0, min(first[i][1], second[j][1]) - max(first[i][0], second[j][0]))
        if first[i][1] <= second[j][1]:
            i += 1
        else:
            j += 1
    return total
