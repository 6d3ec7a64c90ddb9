"""Everything that happens is named once: one annotation gives three readings of it.

`annotate("forward")` is an NVTX range (Nsight's timeline; domain `fusionseg`), a `record_function` range (the torch
profiler's table) and an entry of the time account from which a run's `data_s`, `step_s` and `phases_s` come.
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
"""The phases of a run, with their colours in NVTX. `step` holds those of an optimizer step; its own time is the rest.

Ranges of other names are finer ones: they show in the timelines, and their time is that of their phase."""

_domain = nvtx.get_domain("fusionseg")  # without a tool that listens, an object that does nothing


class TimeAccount:
    """Wall seconds by phase, each second counted once: a phase's time is without that of the phases inside it.

    On a GPU these are the host's seconds: work is queued, so a phase costs what it makes the host wait.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inner: list[float] = []  # for each open phase, the seconds of the phases closed inside it

    def open(self) -> float:
        """Begin a phase; what `close` needs of it."""
        self._inner.append(0.0)
        return time.perf_counter()

    def close(self, name: str, opened: float) -> None:
        """End the phase that was opened last."""
        elapsed = time.perf_counter() - opened
        inner = self._inner
        self.seconds[name] += elapsed - inner.pop()
        if inner:
            inner[-1] += elapsed

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        opened = self.open()
        try:
            yield
        finally:
            self.close(name, opened)

    def take(self) -> dict[str, float]:
        """The seconds since the last call, and start again from zero."""
        taken = dict(self.seconds)
        self.seconds.clear()
        return taken


_local = threading.local()


def account() -> TimeAccount:
    """The time account of this thread."""
    try:
        result: TimeAccount = _local.account
    except AttributeError:
        result = _local.account = TimeAccount()
    return result


class annotate:
    """Name what the body does; closed also when the body raises. A decorator too: `@annotate("validate")`.

    Args:
        name: one of PHASES, or a finer name.
        payload: a number that goes along in NVTX: of the step, or of the micro-batch.
    """

    __slots__ = ("_account", "_function", "_opened", "name", "payload")

    def __init__(self, name: str, payload: int = 0) -> None:
        self.name = name
        self.payload = payload

    def __enter__(self) -> None:
        name = self.name
        color = PHASES.get(name)
        _domain.push_range(
            _domain.get_event_attributes(
                message=name, color=color or "white", category=name if color else "detail", payload=self.payload
            )
        )
        # torch may not be loaded (prepare's numpy parts, the command line): then no profiler listens either.
        torch = sys.modules.get("torch")
        self._function = None
        if torch is not None and torch.autograd._profiler_enabled():
            self._function = torch.profiler.record_function(name)
            self._function.__enter__()
        self._account = account() if color else None
        if self._account is not None:
            self._opened = self._account.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._account is not None:
            self._account.close(self.name, self._opened)
        if self._function is not None:
            self._function.__exit__(kind, error, trace)
        _domain.pop_range()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def annotated(*args: P.args, **kwargs: P.kwargs) -> R:
            with annotate(self.name, self.payload):
                return function(*args, **kwargs)

        return annotated


def stage_ranges(model: Any, depth: int = 2) -> None:
    """A finer range for the forward pass of every part of a torch network, named as in the network.

    The backward pass runs its operators in an order of its own, without the parts' borders: it has no such ranges.

    Args:
        model: a torch.nn.Module; it keeps the ranges.
        depth: how far down parts are named: 2 is `swinViT` and `swinViT.layers1`.
    """
    for name, part in model.named_modules():
        if not name or name.count(".") >= depth:
            continue
        opened: list[annotate] = []  # a stack: a part may call itself

        def enter(*_: Any, name: str = name, opened: list[annotate] = opened) -> None:
            opened.append(annotate(name))
            opened[-1].__enter__()

        def leave(*_: Any, opened: list[annotate] = opened) -> None:
            opened.pop().__exit__(None, None, None)

        part.register_forward_pre_hook(enter)
        part.register_forward_hook(leave, always_call=True)  # also when its forward pass raises
