"""Everything that happens is named once: one annotation gives three readings of it.

`annotate("forward")` is an NVTX range (Nsight's timeline; domain `fusionseg`), a `record_function` range (the torch
profiler's table) and an entry of the time account from which a run's `data_s` and `step_s` come.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import nvtx

PHASES = ("data", "augment", "forward", "loss", "backward", "optimizer", "validate", "checkpoint", "log")
"""The phases of a training run; finer ranges may have other names."""

_COLORS = dict(
    zip(PHASES, ("orange", "yellow", "green", "olive", "blue", "purple", "cyan", "red", "gray"), strict=True)
)
_domain = nvtx.get_domain("fusionseg")


class TimeAccount:
    """Wall seconds by range, each second counted once: a range's time is without that of the ranges inside it.

    On a GPU these are the host's seconds: work is queued, so a phase costs what it makes the host wait.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inner: list[float] = []  # for each open range, the seconds of the ranges closed inside it

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            self.seconds[name] += elapsed - self._inner.pop()
            if self._inner:
                self._inner[-1] += elapsed

    def take(self) -> dict[str, float]:
        """The seconds since the last call, and start again from zero."""
        taken = dict(self.seconds)
        self.seconds.clear()
        return taken


_local = threading.local()


def account() -> TimeAccount:
    """The time account of this thread."""
    if not hasattr(_local, "account"):
        _local.account = TimeAccount()
    result: TimeAccount = _local.account
    return result


@contextmanager
def annotate(name: str) -> Iterator[None]:
    """Name what the body does; closed also when the body raises. A decorator too: `@annotate("validate")`."""
    # torch may not be loaded (prepare's numpy parts, the command line): then no profiler listens either.
    torch = sys.modules.get("torch")
    attributes = _domain.get_event_attributes(message=name, color=_COLORS.get(name, "white"), category=name)
    _domain.push_range(attributes)
    try:
        with account().measure(name):
            if torch is not None and torch.autograd._profiler_enabled():
                with torch.profiler.record_function(name):
                    yield
            else:
                yield
    finally:
        _domain.pop_range()
