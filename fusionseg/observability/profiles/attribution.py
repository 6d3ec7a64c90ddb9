"""Which phase everything in a profile belongs to."""

from __future__ import annotations

from collections import defaultdict

from fusionseg.observability.profiles.intervals import Interval, Nesting
from fusionseg.observability.profiles.timeline import STEP, DeviceWork, Thread, Timeline
from fusionseg.observability.ranges import PHASES

ALLREDUCE = "allreduce"
PHASE_NAMES = tuple(name for name in PHASES if name != STEP)
OUTSIDE = "outside phases"


class Attribution:
    """A timeline, cut to its window, with the phase of each range, operator and piece of device work.

    A range of another name than a phase's (a part of the network) belongs to the phase that it lies in; with none
    around it, it is a phase of its own. `step` is the frame of the phases, and none.
    """

    def __init__(self, timeline: Timeline) -> None:
        self.window = first, last = timeline.window()
        self.main = timeline.main_thread()
        self.ranges = Nesting(timeline.ranges)
        self.range_phases = _phases(self.ranges)
        self.operators = Nesting([span for span in timeline.operators if first <= span.start_ns < last])
        self.operator_phases = [
            self.phase(self.open_range(span.thread, span.start_ns)) for span in self.operators.spans
        ]
        self.device: list[DeviceWork] = [
            work._replace(start_ns=max(work.start_ns, first), end_ns=min(work.end_ns, last))
            for work in timeline.device
            if work.start_ns < last and work.end_ns > first
        ]
        self.launched_in = [self.open_range(work.thread, work.launch_ns) for work in self.device]
        """For each piece of device work the index of the range in which it was launched."""
        self.device_phases = [self.phase(index) for index in self.launched_in]

    @property
    def window_s(self) -> float:
        return seconds(self.window[1] - self.window[0])

    def share(self, time_s: float) -> float:
        """Of the window."""
        return time_s / self.window_s if self.window_s else 0.0

    def open_range(self, thread: Thread | None, time_ns: int | None) -> int | None:
        """The range in which something began: on its own thread, or else on the main thread.

        Autograd's thread has no ranges of its own; the main thread is in `backward` meanwhile.
        """
        if time_ns is None:
            return None
        own = self.ranges.innermost(thread, time_ns)
        return own if own is not None else self.ranges.innermost(self.main, time_ns)

    def phase(self, index: int | None) -> str:
        """The phase of a range, or OUTSIDE."""
        return OUTSIDE if index is None else self.range_phases[index] or OUTSIDE

    def host_phases(self, interval: Interval) -> dict[str, int]:
        """How many ns of an interval the main thread was in which phase."""
        found: dict[str, int] = defaultdict(int)
        rest = interval[1] - interval[0]
        for start, end, index in self.ranges.overlapping(self.main, interval):
            found[self.phase(index)] += end - start
            rest -= end - start
        if rest:
            found[OUTSIDE] += rest
        return dict(found)


def seconds(nanoseconds: int) -> float:
    return nanoseconds / 1e9


def _phases(nesting: Nesting) -> list[str | None]:
    phases: list[str | None] = [None] * len(nesting.spans)
    order = sorted(range(len(nesting.spans)), key=lambda i: (nesting.spans[i].start_ns, -nesting.spans[i].end_ns))
    for index in order:  # what is around a range comes before it
        name, parent = nesting.spans[index].name, nesting.parent[index]
        around = None if parent is None else phases[parent]
        phases[index] = name if name in PHASE_NAMES or (around is None and name != STEP) else around
    return phases
