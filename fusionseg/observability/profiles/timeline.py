"""One form for the profiles of all tools, and the reader of the torch profiler's traces.

Times are whole nanoseconds of the profile's own clock, so that sums are exact.
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
"""The range around an optimizer step: the frame of the phases, none itself."""

# Ranges that torch makes by itself: operators as any other, for nobody named a phase by them.
_TORCH_RANGES = re.compile(
    r"ProfilerStep#|Optimizer\.|DistributedDataParallel\.|enumerate\(DataLoader\)|nn\.Module:|## "
    r"|(nccl|gloo|c10d|mpi|ucc):"
)
_DEVICE_KINDS: dict[str, Kind] = {"kernel": "kernel", "gpu_memcpy": "memcpy", "gpu_memset": "memset"}
_LAUNCHES = ("cuda_runtime", "cuda_driver")
_PROFILE_AGAIN = "profile again, and let the run leave the window of steps before it ends"


class Span(NamedTuple):
    """A range or an operator on the host."""

    name: str
    start_ns: int
    end_ns: int
    thread: Thread
    payload: int | None = None
    """Of a range: the step's number, or the micro-batch's, where the tool keeps it."""
    cut: bool = False
    """Whether it was still open when the profile ended: then its end is the profile's."""


class DeviceWork(NamedTuple):
    """A kernel, copy or fill on the device."""

    name: str
    kind: Kind
    start_ns: int
    end_ns: int
    device: int
    stream: int
    launch_ns: int | None = None
    """When the host asked for it; None if the profile does not say."""
    thread: Thread | None = None
    """The host's thread that did."""


@dataclass
class Timeline:
    """What a profile holds."""

    source: str
    """The file's name."""
    tool: str
    """`torch` or `nsys`."""
    ranges: list[Span] = field(default_factory=list)
    operators: list[Span] = field(default_factory=list)
    device: list[DeviceWork] = field(default_factory=list)

    def main_thread(self) -> Thread | None:
        """The thread that makes the steps; without steps that of the most ranges' time, or of the operators'."""
        for spans in ([span for span in self.ranges if span.name == STEP], self.ranges, self.operators):
            totals: dict[Thread, int] = defaultdict(int)
            for span in spans:
                totals[span.thread] += span.end_ns - span.start_ns
            if totals:
                return max(totals, key=lambda thread: totals[thread])
        return None

    def window(self) -> tuple[int, int]:
        """Start and end in ns: from the first range to the last one, and to the end of the work that they launched.

        Without ranges, everything there is.
        """
        spans: list[Span] = self.ranges
        if not spans:
            return _extent([*((s.start_ns, s.end_ns) for s in self.operators), *((d[2], d[3]) for d in self.device)])
        start, end = _extent((span.start_ns, span.end_ns) for span in spans)
        launched = (work.end_ns for work in self.device if work.launch_ns is not None and work.launch_ns < end)
        return start, max(end, max(launched, default=end))


def _extent(intervals: Iterable[tuple[int, int]]) -> tuple[int, int]:
    pairs = list(intervals)
    return (min(start for start, _ in pairs), max(end for _, end in pairs)) if pairs else (0, 0)


def read_torch_trace(path: Path) -> Timeline:
    """The timeline of a Chrome trace by torch.profiler's export_chrome_trace, gzipped or not.

    Raises:
        UserError: the file cannot be read, is cut off, or is something else.
    """
    events = _events(path)
    timeline = Timeline(path.name, "torch")
    launches: dict[int, tuple[int, Thread]] = {}
    works: list[tuple[Kind, dict[str, Any]]] = []
    try:
        for event in events:
            category = event.get("cat")
            if event.get("ph") != "X" or category is None:
                continue
            if category in ("user_annotation", "cpu_op"):
                named = category == "user_annotation" and _TORCH_RANGES.match(event["name"]) is None
                spans = timeline.ranges if named else timeline.operators
                cut = event.get("args", {}).get("finished") is False
                spans.append(Span(event["name"], *_interval(event), event["tid"], cut=cut))
            elif category in _LAUNCHES:
                correlation = event.get("args", {}).get("correlation")
                launches.setdefault(correlation, (_ns(event["ts"]), event["tid"]))
            elif category in _DEVICE_KINDS:
                works.append((_DEVICE_KINDS[category], event))
        for kind, event in works:
            args = event.get("args", {})
            launched = launches.get(args.get("correlation"), (None, None))
            place = int(args.get("device", 0)), int(args.get("stream", 0))
            timeline.device.append(DeviceWork(event["name"], kind, *_interval(event), *place, *launched))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: an event is not as torch.profiler writes it ({type(error).__name__}: {error}); {_PROFILE_AGAIN}"
        ) from None
    if not (timeline.ranges or timeline.operators or timeline.device):
        raise UserError(
            f"{path}: holds no events of torch's profiler: give it a trace by torch.profiler's export_chrome_trace, as"
            " profile.with=torch writes"
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
        raise UserError(f"{path}: is cut off, or no JSON ({error}); {_PROFILE_AGAIN}") from None
    if not isinstance(content, dict) or not isinstance(content.get("traceEvents"), list):
        raise UserError(
            f"{path}: is JSON, but no Chrome trace (it has no traceEvents): give it what torch.profiler's"
            " export_chrome_trace writes"
        )
    return cast(list[dict[str, Any]], content["traceEvents"])


def _interval(event: dict[str, Any]) -> tuple[int, int]:
    start = _ns(event["ts"])
    return start, start + _ns(event["dur"])


def _ns(microseconds: float) -> int:
    return round(microseconds * 1000)
