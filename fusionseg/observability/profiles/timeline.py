"""Timeline: the common form of profiles of all tools; and the reader of the torch profiler's traces.

Times are integer nanoseconds of the profile's own clock, so that sums are exact.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from fusionseg.utils.errors import UserError

Thread = int | str
Kind = Literal["kernel", "memcpy", "memset"]

STEP = "step"
"""Name of the range around an optimizer step. It encloses phases and is no phase itself."""

# torch opens these ranges by itself. They are treated as operators, because they name no phase of the program.
_TORCH_RANGES = re.compile(
    r"ProfilerStep#|Optimizer\.|DistributedDataParallel\.|enumerate\(DataLoader\)|nn\.Module:|## "
    r"|(nccl|gloo|c10d|mpi|ucc):"
)
_DEVICE_KINDS: dict[str, Kind] = {"kernel": "kernel", "gpu_memcpy": "memcpy", "gpu_memset": "memset"}
_LAUNCHES = ("cuda_runtime", "cuda_driver")
_PROFILE_AGAIN = "profile again, with profile.steps that end before the run does"


class HostEvent(NamedTuple):
    """A range or an operator on the host."""

    name: str
    start_ns: int
    end_ns: int
    thread: Thread
    payload: int | None = None
    """Payload of a range (index of the step or micro-batch); None if the tool does not keep it."""
    truncated: bool = False
    """True if the event was still open when the profile ended; its end is then that of the profile."""


class DeviceEvent(NamedTuple):
    """A kernel, a memory copy or a memory fill on the device."""

    name: str
    kind: Kind
    start_ns: int
    end_ns: int
    device: int
    stream: int
    launch_ns: int | None = None
    """Time of the launch on the host; None if the profile lacks it."""
    thread: Thread | None = None
    """Thread of the launch on the host; None if the profile lacks it."""


@dataclass
class Timeline:
    """Events of one profile of one process."""

    source: str
    """File name."""
    tool: str
    """`torch` or `nsys`."""
    ranges: list[HostEvent] = field(default_factory=list)
    operators: list[HostEvent] = field(default_factory=list)
    device_events: list[DeviceEvent] = field(default_factory=list)

    def main_thread(self) -> Thread | None:
        """Thread of the training steps; without steps the thread with the most time in ranges, or else in operators."""
        for events in ([event for event in self.ranges if event.name == STEP], self.ranges, self.operators):
            totals: dict[Thread, int] = defaultdict(int)
            for event in events:
                totals[event.thread] += event.end_ns - event.start_ns
            if totals:
                return max(totals, key=lambda thread: totals[thread])
        return None

    def profile_range(self) -> tuple[int, int]:
        """Start and end of the profiled part in ns.

        It begins with the first range and ends with the last range, or with the device work launched in them if that
        ends later. Without ranges it covers all events.
        """
        if not self.ranges:
            host = ((event.start_ns, event.end_ns) for event in self.operators)
            return _extent([*host, *((event.start_ns, event.end_ns) for event in self.device_events)])
        start, end = _extent((event.start_ns, event.end_ns) for event in self.ranges)
        launched = (e.end_ns for e in self.device_events if e.launch_ns is not None and e.launch_ns < end)
        return start, max(end, max(launched, default=end))


def _extent(intervals: Iterable[tuple[int, int]]) -> tuple[int, int]:
    pairs = list(intervals)
    return (min(start for start, _ in pairs), max(end for _, end in pairs)) if pairs else (0, 0)


def read_torch_trace(path: Path) -> Timeline:
    """Read a Chrome trace that torch.profiler's export_chrome_trace wrote, gzipped or not.

    Raises:
        UserError: the file cannot be read, is incomplete, or is no such trace.
    """
    events = _events(path)
    timeline = Timeline(path.name, "torch")
    launches: dict[int, tuple[int, Thread]] = {}
    device: list[tuple[Kind, dict[str, Any]]] = []
    try:
        for event in events:
            category = event.get("cat")
            if event.get("ph") != "X" or category is None:
                continue
            if category in ("user_annotation", "cpu_op"):
                is_range = category == "user_annotation" and _TORCH_RANGES.match(event["name"]) is None
                host_events = timeline.ranges if is_range else timeline.operators
                truncated = event.get("args", {}).get("finished") is False
                host_events.append(HostEvent(event["name"], *_interval(event), event["tid"], truncated=truncated))
            elif category in _LAUNCHES:
                correlation = event.get("args", {}).get("correlation")
                launches.setdefault(correlation, (_ns(event["ts"]), event["tid"]))
            elif category in _DEVICE_KINDS:
                device.append((_DEVICE_KINDS[category], event))
        for kind, event in device:
            args = event.get("args", {})
            launched = launches.get(args.get("correlation"), (None, None))
            stream = int(args.get("device", 0)), int(args.get("stream", 0))
            timeline.device_events.append(DeviceEvent(event["name"], kind, *_interval(event), *stream, *launched))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: an event differs from those that torch.profiler writes ({type(error).__name__}: {error});"
            f" {_PROFILE_AGAIN}"
        ) from None
    if not (timeline.ranges or timeline.operators or timeline.device_events):
        raise UserError(
            f"{path}: the file has no events of torch.profiler; give a trace that its export_chrome_trace wrote, as a"
            " run with profile.with=torch does"
        )
    return timeline


def _events(path: Path) -> list[dict[str, Any]]:
    """The events of a Chrome trace."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8", errors="replace") as file:
            content = json.load(file, strict=False)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path}: the file is incomplete or no JSON ({error}); {_PROFILE_AGAIN}") from None
    if not isinstance(content, dict) or not isinstance(content.get("traceEvents"), list):
        raise UserError(
            f"{path}: the file is JSON but no Chrome trace (it has no traceEvents); give a trace that torch.profiler's"
            " export_chrome_trace wrote"
        )
    return cast(list[dict[str, Any]], content["traceEvents"])


def _interval(event: dict[str, Any]) -> tuple[int, int]:
    start = _ns(event["ts"])
    return start, start + _ns(event["dur"])


def _ns(microseconds: float) -> int:
    return round(microseconds * 1000)
