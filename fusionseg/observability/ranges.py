"""Named ranges of time: one annotation for NVTX, the torch profiler and the run's own phase times.

`annotate("forward")` opens three things: an NVTX range in the domain `fusionseg` (Nsight Systems shows it), a
`record_function` range (the torch profiler shows it), and a measurement by the `PhaseTimer` of this thread. A run's
`data_s`, `step_s` and `phases_s` come from the phase timer.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import nvtx

P = ParamSpec("P")
R = TypeVar("R")

PHASES = {
    "start": "white",
    "prepare": "brown",
    "cache": "gold",
    "step": "lightgray",
    "data": "orange",
    "augment": "yellow",
    "forward": "green",
    "loss": "olive",
    "backward": "blue",
    "allreduce": "magenta",
    "optimizer": "purple",
    "validate": "cyan",
    "checkpoint": "red",
    "log": "gray",
}
"""The phases of a run, with their colours in NVTX.

`step` encloses the phases of one optimizer step; its own time is what those phases leave. A range of any other name is
a detail: timelines show it, and its time counts for the phase around it."""
BETWEEN_STEPS = ("validate", "checkpoint", "log")
"""The phases between two steps."""
IN_STEP = frozenset(PHASES) - {*BETWEEN_STEPS, "start", "prepare", "cache"}
"""The phases of a step."""

_FAILED_PHASE = "_fusionseg_phase"
"""Attribute of an error that has left a phase."""

_domain = nvtx.get_domain("fusionseg")  # does nothing unless a tool such as Nsight Systems is attached


class PhaseTimer:
    """Wall time of each phase in seconds.

    Each second is counted once: the time of a phase excludes the phases nested in it. The clock is the host's. Work on
    a GPU is queued, so a phase that launches work takes only the time for which the host is busy or waits.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.names: list[str] = []
        """The open phases, the innermost last. Another thread may read them."""
        self.changes = 0
        """Number of phases that were opened or closed, and of other signs of progress. Another thread may read it."""
        self._inner: list[float] = []  # for each open phase, the seconds of the phases closed inside it

    def open(self, name: str) -> float:
        """Begin a phase and return its start time, which `close` needs."""
        self.names.append(name)
        self.changes += 1
        self._inner.append(0.0)
        return time.perf_counter()

    def close(self, name: str, opened: float) -> None:
        """End the phase that was opened last.

        Args:
            name: the phase to which the time is added.
            opened: the value that `open` returned.
        """
        elapsed = time.perf_counter() - opened
        inner = self._inner
        self.seconds[name] += elapsed - inner.pop()
        self.names.pop()
        self.changes += 1
        if inner:
            inner[-1] += elapsed

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time of the body to the phase `name`, also when the body raises."""
        opened = self.open(name)
        try:
            yield
        finally:
            self.close(name, opened)

    def take(self) -> dict[str, float]:
        """Return the seconds of each phase since the last call, and reset them."""
        taken = dict(self.seconds)
        self.seconds.clear()
        return taken


_local = threading.local()


def phase_timer() -> PhaseTimer:
    """The phase timer of the calling thread."""
    try:
        timer: PhaseTimer = _local.timer
    except AttributeError:
        timer = _local.timer = PhaseTimer()
    return timer


def progressed() -> None:
    """Note that this thread gets on within a long phase, which opens no further ones. The watchdog reads it."""
    phase_timer().changes += 1


def failed_phase(error: BaseException) -> str | None:
    """The innermost phase in which an error was raised; None if it was in none."""
    name = error.__dict__.get(_FAILED_PHASE)
    return name if isinstance(name, str) else None


@contextmanager
def silence() -> Iterator[None]:
    """Let `annotate` open no range and measure nothing in this thread: for a step that only counts or estimates."""
    before = getattr(_local, "is_silent", False)
    _local.is_silent = True
    try:
        yield
    finally:
        _local.is_silent = before


class annotate:
    """Context manager and decorator that opens a named range; the range is closed also when the body raises.

    Args:
        name: one of PHASES, or any other name for a detail within a phase.
        payload: number shown with the NVTX range, such as the index of the step or of the micro-batch.
    """

    __slots__ = ("_function", "_is_silent", "_opened", "_timer", "name", "payload")

    def __init__(self, name: str, payload: int = 0) -> None:
        self.name = name
        self.payload = payload

    def __enter__(self) -> None:
        self._is_silent = getattr(_local, "is_silent", False)
        if self._is_silent:
            return
        name = self.name
        color = PHASES.get(name)
        _domain.push_range(
            _domain.get_event_attributes(
                message=name, color=color or "white", category=name if color else "detail", payload=self.payload
            )
        )
        # Do not import torch here: the command line and the numpy parts run without it, and then no profiler is active.
        torch = sys.modules.get("torch")
        self._function = None
        if torch is not None and torch.autograd._profiler_enabled():
            self._function = torch.profiler.record_function(name)
            self._function.__enter__()
        timer = phase_timer()
        self._timer = timer if color else None
        if color:
            self._opened = timer.open(name)
        else:
            timer.changes += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_silent:
            return
        if error is not None and self.name in PHASES and failed_phase(error) is None:
            error.__dict__[_FAILED_PHASE] = self.name
        if self._timer is not None:
            self._timer.close(self.name, self._opened)
        if self._function is not None:
            self._function.__exit__(kind, error, trace)
        _domain.pop_range()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def annotated(*args: P.args, **kwargs: P.kwargs) -> R:
            with annotate(self.name, self.payload):
                return function(*args, **kwargs)

        return annotated


def annotate_modules(model: Any, depth: int = 2) -> None:
    """Open a range for the forward pass of each submodule, named like the submodule.

    There are no such ranges in the backward pass: autograd runs operators, not modules.

    Args:
        model: a torch.nn.Module; forward hooks are added to it and stay.
        depth: levels of submodules that get a range: 1 names `swinViT`, 2 also `swinViT.layers1`.
    """
    for name, module in model.named_modules():
        if not name or name.count(".") >= depth:
            continue
        opened: list[annotate] = []  # a stack, because a module may call itself

        def enter(*_: Any, name: str = name, opened: list[annotate] = opened) -> None:
            opened.append(annotate(name))
            opened[-1].__enter__()

        def leave(*_: Any, opened: list[annotate] = opened) -> None:
            opened.pop().__exit__(None, None, None)

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave, always_call=True)  # also when the forward pass raises
