"""Attribution of ranges, operators and device work to the phases of a run."""

from __future__ import annotations

from collections import defaultdict

from fusionseg.observability.profiles.intervals import Interval, Nesting
from fusionseg.observability.profiles.timeline import STEP, DeviceEvent, Thread, Timeline
from fusionseg.observability.ranges import PHASES

ALLREDUCE = "allreduce"
PHASE_NAMES = tuple(name for name in PHASES if name != STEP)
OUTSIDE = "outside phases"


class Attribution:
    """A timeline cut to its profile range, with the phase of each range, operator and device event.

    A range with another name than a phase (a module of the network) belongs to the phase around it. Without a phase
    around it, such a range is a phase of its own. `step` encloses the phases and is no phase itself.
    """

    def __init__(self, timeline: Timeline) -> None:
        self.profile_range = first, last = timeline.profile_range()
        self.main_thread = timeline.main_thread()
        self.ranges = Nesting(timeline.ranges)
        self.range_phases = _range_phases(self.ranges)
        self.operators = Nesting([event for event in timeline.operators if first <= event.start_ns < last])
        self.operator_phases = [
            self.phase_of(self.range_at(event.thread, event.start_ns)) for event in self.operators.events
        ]
        self.device_events: list[DeviceEvent] = [
            event._replace(start_ns=max(event.start_ns, first), end_ns=min(event.end_ns, last))
            for event in timeline.device_events
            if event.start_ns < last and event.end_ns > first
        ]
        self.launch_ranges = [self.range_at(event.thread, event.launch_ns) for event in self.device_events]
        """Index of the range in which each device event was launched."""
        self.device_phases = [self.phase_of(index) for index in self.launch_ranges]

    @property
    def duration_s(self) -> float:
        """Length of the profile range in seconds."""
        return seconds(self.profile_range[1] - self.profile_range[0])

    def share(self, time_s: float) -> float:
        """Share of the profile range, 0 to 1."""
        return time_s / self.duration_s if self.duration_s else 0.0

    def range_at(self, thread: Thread | None, time_ns: int | None) -> int | None:
        """Index of the range that is open at a time on a thread, or else on the main thread; None if there is none.

        The main thread stands in for autograd's thread, which opens no ranges: the main thread is in `backward` then.
        """
        if time_ns is None:
            return None
        own = self.ranges.innermost(thread, time_ns)
        return own if own is not None else self.ranges.innermost(self.main_thread, time_ns)

    def phase_of(self, index: int | None) -> str:
        """Phase of the range with this index, or OUTSIDE."""
        return OUTSIDE if index is None else self.range_phases[index] or OUTSIDE

    def host_phases(self, interval: Interval) -> dict[str, int]:
        """Time in ns that the main thread spends in each phase during an interval."""
        found: dict[str, int] = defaultdict(int)
        rest = interval[1] - interval[0]
        for start, end, index in self.ranges.overlapping(self.main_thread, interval):
            found[self.phase_of(index)] += end - start
            rest -= end - start
        if rest:
            found[OUTSIDE] += rest
        return dict(found)


def seconds(nanoseconds: int) -> float:
    """Convert ns to seconds."""
    return nanoseconds / 1e9


def _range_phases(nesting: Nesting) -> list[str | None]:
    """Phase of each range; None for `step`."""
    phases: list[str | None] = [None] * len(nesting.events)
    # Outer ranges come before the ranges nested in them.
    order = sorted(range(len(nesting.events)), key=lambda i: (nesting.events[i].start_ns, -nesting.events[i].end_ns))
    for index in order:
        name, parent = nesting.events[index].name, nesting.parent[index]
        outer = None if parent is None else phases[parent]
        phases[index] = name if name in PHASE_NAMES or (outer is None and name != STEP) else outer
    return phases
