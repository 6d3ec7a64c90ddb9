"""Signals that stop a training. A signal sets a flag, which the training loop reads between two steps."""

from __future__ import annotations

import logging
import os
import signal
from types import FrameType, TracebackType
from typing import Any

from fusionseg.distributed.torchrun_watch import torchrun_has_ended

log = logging.getLogger("fusionseg")

LEAD_VARIABLE = "FUSIONSEG_LEAD_S"
"""Environment variable: seconds between the signal to a job and the end of the job. A job without signal has none."""

TORCHRUN_ENDED = 1000
"""Number in place of a signal's: torchrun has ended before its ranks. It is higher than the number of any signal."""

CANNOT_SAVE = 1001
"""Number in place of a signal's: the disk has taken no checkpoint or record for too long (`checkpoint.retry_s`)."""

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)


def is_ignored(number: int) -> bool:
    """Return whether this process ignores a signal, as `nohup` makes it ignore SIGHUP.

    Args:
        number: the number of the signal.
    """
    return signal.getsignal(number) is signal.SIG_IGN


class StopSignals:
    """While entered, SIGTERM, SIGINT, SIGUSR2 and SIGHUP ask for a checkpoint and an orderly end.

    SIGHUP, which a closed terminal sends, stays ignored if it was ignored before (nohup). A second SIGINT interrupts at
    once, without waiting for the step.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        # The parent of a rank may ignore SIGTERM and SIGUSR2 (`fusionseg.cluster.job`), and the rank inherits that.
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
        if number == signal.SIGTERM and torchrun_has_ended():
            number = TORCHRUN_ENDED
        # SIGTERM may follow SIGUSR2 during a validation. SIGUSR2 is the more specific reason.
        if self.received != signal.SIGUSR2:
            self.received = number


class Lead:
    """The time between the signal to a job and its end. A validation that has begun and a save must fit into it."""

    def __init__(self) -> None:
        self.seconds = float(os.environ.get(LEAD_VARIABLE) or "inf")
        self._longest: dict[str, float] = {}

    def took(self, what: str, seconds: float) -> None:
        """Note the duration of a validation or a save; warn once if the longest of both do not fit.

        Args:
            what: "validation" or "save".
            seconds: its duration.
        """
        fitted = sum(self._longest.values()) <= self.seconds
        self._longest[what] = max(seconds, self._longest.get(what, 0.0))
        if fitted and sum(self._longest.values()) > self.seconds:
            parts = " and ".join(f"a {name} ({longest:.0f} s)" for name, longest in self._longest.items())
            log.warning(
                "this job gets its signal %.0f s before its end, but %s: raise the cluster profile's signal_s, or the"
                " run may lose the steps since its last checkpoint",
                self.seconds,
                f"{parts} take longer" if len(self._longest) > 1 else f"{parts} takes longer",
            )


def signal_name(number: int) -> str:
    if number == TORCHRUN_ENDED:
        return "torchrun has ended"
    return signal.Signals(number).name
