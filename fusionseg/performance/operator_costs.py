"""Time, operations and memory traffic of every operator of a training step, by phase."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fusionseg.models.operator_costs import Call, bytes_moved, operations
from fusionseg.training import micro_batches, step

TimePoint = float | torch.cuda.Event


class OperatorRecorder(TorchDispatchMode):
    """Record every operator that runs while this context manager is entered.

    On a GPU the seconds of an operator are measured by two events in the stream. If the host is slower than the
    device, they include the time that the device waits for the launch.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.phase = ""
        self._recorded: list[tuple[tuple[str, str, int, int], TimePoint, TimePoint]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        start = time_point(self.device)
        result = func(*args, **kwargs)
        end = time_point(self.device)
        moved = bytes_moved(func, args, kwargs, result)
        if moved:
            flops = operations(func, args, kwargs, result)
            self._recorded.append(((self.phase, func.overloadpacket.__name__, flops, moved), start, end))
        return result

    def calls(self) -> list[Call]:
        """All calls so far, in order; this waits for the device."""
        synchronize(self.device)
        return [Call(*counted, seconds_between(start, end)) for counted, start, end in self._recorded]


def time_point(device: torch.device) -> TimePoint:
    """Present time on a device: an event in the stream of a GPU, the clock in seconds on a CPU."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()  # type: ignore[no-untyped-call]
    return event


def seconds_between(start: TimePoint, end: TimePoint) -> float:
    """Seconds between two time points; on a GPU call `synchronize` first."""
    if isinstance(start, torch.cuda.Event):
        assert isinstance(end, torch.cuda.Event)
        return float(start.elapsed_time(end)) / 1e3  # type: ignore[no-untyped-call]
    assert not isinstance(end, torch.cuda.Event)
    return end - start


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PhaseClock:
    """Time of each phase of a step on the device. Call it with a phase name to get a context manager."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._measured: list[tuple[str, TimePoint, TimePoint]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time_point(self.device)
        yield
        self._measured.append((name, start, time_point(self.device)))

    def seconds(self) -> dict[str, float]:
        """Seconds of each phase, in the order of the step; this waits for the device."""
        synchronize(self.device)
        total: defaultdict[str, float] = defaultdict(float)
        for name, start, end in self._measured:
            total[name] += seconds_between(start, end)
        return dict(total)


@contextmanager
def follow_phases(enter: Callable[[str], AbstractContextManager[None]]) -> Iterator[None]:
    """Enter a context manager around each phase of every training step within the body.

    `annotate` is wrapped for this in `fusionseg.training.step` and `fusionseg.training.micro_batches`, so that the
    measured step is the one that training uses and not a copy of it.

    Args:
        enter: function from a phase name to a context manager.
    """
    original = step.annotate

    @contextmanager
    def both(name: str, payload: int = 0) -> Iterator[None]:
        with original(name, payload), enter(name):
            yield

    modules = (step, micro_batches)
    for module in modules:
        vars(module)["annotate"] = both
    try:
        yield
    finally:
        for module in modules:
            vars(module)["annotate"] = original
