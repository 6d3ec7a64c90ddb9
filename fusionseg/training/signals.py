"""Signals set a flag; the training loop looks at it between two steps."""

from __future__ import annotations

import logging
import os
import signal
from types import FrameType, TracebackType
from typing import Any

log = logging.getLogger("fusionseg")

LEAD_VARIABLE = "FUSIONSEG_LEAD_S"
"""Says how many seconds before its end a job is signalled, for those that are."""

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)


def is_ignored(number: int) -> bool:
    """Whether this process was started with a signal ignored, as `nohup` does with SIGHUP."""
    return signal.getsignal(number) is signal.SIG_IGN


class StopSignals:
    """While entered, SIGTERM, SIGINT, SIGUSR2 and SIGHUP ask for a checkpoint and an orderly end.

    SIGHUP, of a terminal that is closed, does nothing where it was ignored before (nohup). A second SIGINT interrupts
    at once, for a person who will not wait for the step.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        # What starts a rank may ignore SIGTERM and SIGUSR2 itself (cluster/job.py); the rank must still take notice.
        taken = [number for number in STOPPING if number != signal.SIGHUP or not is_ignored(number)]
        self._before = {number: signal.signal(number, self._handle) for number in taken}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == self.received == signal.SIGINT:
            raise KeyboardInterrupt
        # SIGTERM may follow SIGUSR2 while a validation goes on; the first says more.
        if self.received != signal.SIGUSR2:
            self.received = number


class Lead:
    """Whether a job is told early enough: between the signal and the end there must be room for a validation that is
    under way, and a save."""

    def __init__(self) -> None:
        self.seconds = float(os.environ.get(LEAD_VARIABLE) or "inf")
        self._longest: dict[str, float] = {}

    def took(self, what: str, seconds: float) -> None:
        """Note the time of a `validation` or a `save`; warn, once, when they do not fit."""
        fitted = sum(self._longest.values()) <= self.seconds
        self._longest[what] = max(seconds, self._longest.get(what, 0.0))
        if fitted and sum(self._longest.values()) > self.seconds:
            parts = " and ".join(f"a {name} {longest:.0f} s" for name, longest in self._longest.items())
            log.warning(
                "this job is told to leave %.0f s before its end, and %s: raise the cluster profile's signal_s, or the"
                " run may lose the steps since its last checkpoint",
                self.seconds,
                f"{parts} take longer" if len(self._longest) > 1 else f"{parts} takes longer",
            )


def signal_name(number: int) -> str:
    return signal.Signals(number).name
