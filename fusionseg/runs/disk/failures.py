"""Failed writes of a run: the training goes on, the writes are tried again, and after a while the run gives up."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fusionseg.utils.errors import TrainingStopped, WriteError

log = logging.getLogger("fusionseg")

FIRST_PAUSE_S = 1.0
"""Seconds until a failed write is tried again. Each further pause is twice as long."""
LONGEST_PAUSE_S = 60.0
AFTER_SIGNAL_S = 10.0
"""Seconds for which a run that a signal ends tries to write to a disk that takes nothing: the checkpoint, and then the
end. SLURM kills a job 30 s after its signal."""
_POLL_S = 0.1


@dataclass(frozen=True)
class Fault:
    """A time in which a file of a run could not be written."""

    path: str
    """The file, or its folder."""
    what: str
    """The content that could not be written, such as "a checkpoint"."""
    reason: str
    """The error of the operating system."""
    began: float
    """Time of the first failed write, in seconds since 1970."""
    ended: float | None = None
    """Time at which the write succeeded; None while it fails."""


_REMEDIES = {
    errno.ENOSPC: "free space on the disk",
    errno.EDQUOT: "free space, or ask for a larger quota",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EROFS: "mount the disk for writing again",
    errno.EACCES: "give this user the permission to write there",
    errno.EPERM: "give this user the permission to write there",
}


def reason_of(error: OSError) -> str:
    """The cause of a failed write in a few words, such as "No space left on device"."""
    if isinstance(error, WriteError) and isinstance(error.__cause__, OSError):
        error = error.__cause__  # without the remedy
    return error.strerror or str(error)


def remedy_of(reason: str) -> str:
    """Name the remedy for the cause of a failed write.

    Args:
        reason: from `reason_of`.
    """
    by_text = {os.strerror(number): remedy for number, remedy in _REMEDIES.items()}
    return by_text.get(reason, "look for errors of the disk or of its file server")


def _ignore(fault: Fault) -> None:
    pass


def do_nothing() -> None:
    """Do nothing, in place of a function that somebody may give."""


def _no() -> bool:
    return False


class DiskFailures:
    """The writes of a run that fail at present. Rank 0 has the writers, and they share this object.

    Args:
        retry_s: seconds for which the run goes on without being able to write (`checkpoint.retry_s`); 0 gives up at
            once. It may be changed later.
        note: called with each fault when it begins, and again when it ends.
        wait: called again and again while the run waits for the disk, so that the watchdog sees that it lives.
        pause_s: seconds until the first retry.
    """

    def __init__(
        self,
        retry_s: float,
        note: Callable[[Fault], None] = _ignore,
        wait: Callable[[], None] = do_nothing,
        pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        self.retry_s = retry_s
        self.newest: Callable[[], str] = lambda: "its newest checkpoint"
        """Names the checkpoint from which the run goes on after it has given up."""
        self.is_stopping: Callable[[], bool] = _no
        """Tells whether a signal has asked the run to end: it then waits for the disk for `AFTER_SIGNAL_S` at most."""
        self._note = note
        self._wait = wait
        self._first_pause_s = self._pause_s = pause_s
        self.verdict = ""
        """The message with which the run gives up; empty if it has not."""
        self._faults: dict[Path, Fault] = {}
        self._since = self._next_at = 0.0

    @property
    def failing(self) -> bool:
        """Whether any file cannot be written at present."""
        return bool(self._faults)

    def is_failing(self, path: Path) -> bool:
        """Whether a file cannot be written at present."""
        return path in self._faults

    @property
    def is_due(self) -> bool:
        """Whether the failed writes are to be tried again now."""
        return self.failing and time.monotonic() >= self._next_at

    def has_given_up(self) -> bool:
        """Tell whether a write has failed after the time that the run goes on without. A run does not take it back."""
        return bool(self.verdict)

    @property
    def message(self) -> str:
        """The reason why the run gives up, and the remedy."""
        files = "; ".join(
            f"{each.path}: {each.what} could not be written ({each.reason})" for each in self._faults.values()
        )
        seconds = time.monotonic() - self._since
        tried = f", tried for {seconds:.0f} s (checkpoint.retry_s)" if self.retry_s else ""
        remedies = ", ".join(dict.fromkeys(remedy_of(each.reason) for each in self._faults.values()))
        return f"{files}{tried}: {remedies}, and start the run again: it goes on from {self.newest()}"

    def failed(self, path: Path, what: str, error: OSError) -> None:
        """Note that a file could not be written.

        Args:
            path: the file, or its folder.
            what: the content, such as "a record".
            error: the error of the write.
        """
        now, reason = time.monotonic(), reason_of(error)
        if not self._faults:
            self._since, self._pause_s = now, self._first_pause_s
            self._next_at = now + self._pause_s
        elif now >= self._next_at:  # two files that fail in one attempt count once
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            self._next_at = now + self._pause_s
        end = self._since + self.retry_s
        if now < end:
            self._next_at = min(self._next_at, end)  # the last attempt
        known = self._faults.get(path)
        if known is None or known.reason != reason:
            self._faults[path] = fault = Fault(str(path), what, reason, time.time() if known is None else known.began)
            self._note(fault)
            if self.retry_s:
                log.warning(
                    "%s: %s could not be written (%s): %s; the training goes on and tries again, for up to %.0f s"
                    " (checkpoint.retry_s)",
                    path,
                    what,
                    reason,
                    remedy_of(reason),
                    self.retry_s,
                )
        if now >= end:
            self.verdict = self.verdict or self.message

    def worked(self, path: Path) -> None:
        """Note that a file was written."""
        fault = self._faults.pop(path, None)
        if fault is not None:
            ended = time.time()
            log.warning("%s: can be written again, after %.0f s", path, ended - fault.began)
            self._note(replace(fault, ended=ended))

    def keep_trying(self, attempt: Callable[[], bool], patience_s: float | None = None) -> None:
        """Repeat an attempt, with the pauses between failed writes, until it succeeds.

        A signal that asks the run to end is heard while it waits, see `is_stopping`.

        Args:
            attempt: returns whether everything is written.
            patience_s: seconds to try; None tries until the run gives up.

        Raises:
            TrainingStopped: the run has given up, or the patience has ended.
        """
        end = float("inf") if patience_s is None else time.monotonic() + patience_s
        hurries = patience_s is not None
        while not attempt():
            tried = time.monotonic()
            while True:
                if not hurries and self.is_stopping():
                    hurries, end = True, time.monotonic() + AFTER_SIGNAL_S
                if not self.failing or self.has_given_up() or time.monotonic() >= end:
                    raise TrainingStopped(self.message)
                if self.is_due or (hurries and time.monotonic() - tried >= self._first_pause_s):
                    break
                self._wait()
                time.sleep(_POLL_S)
