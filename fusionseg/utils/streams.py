"""Standard output and standard error whose failures do not end the program.

If a pipe or a terminal is closed, the disk behind `> log.txt` is full, or nobody reads a pipe, the text is lost, and
the program continues. Every entry point calls `protect` once, before anything is printed.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
import time
from typing import Any, TextIO

PATIENCE_S = 2.0
"""Seconds that a training waits, once, for a pipe that nobody reads."""
_CHUNK_BYTES = select.PIPE_BUF  # a pipe that is ready accepts this many bytes without blocking

# Failures that may pass: later text can be written when there is space again.
_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MARK = "_fusionseg_target"


class _Target(io.RawIOBase):
    """A file descriptor whose `write` never fails."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.patience_s: float | None = None
        """Seconds to wait for a reader; None waits without limit."""
        self.error: OSError | None = None
        """The first failure."""
        self.replaced: TextIO | None = None
        """The stream before `protect`; it is kept, since it closes the descriptor when it is deleted."""
        self._is_slow = False
        self._dropped = 0

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest:
                if not self._is_ready():
                    self._dropped += len(rest)
                    break
                if self._dropped:
                    note = f"\n({self._dropped} bytes were not shown: nobody read them)\n"
                    self._dropped = 0
                    os.write(self._descriptor, note.encode())
                    continue
                try:
                    rest = rest[os.write(self._descriptor, rest[:_CHUNK_BYTES]) :]
                except BlockingIOError:  # the other end has made the descriptor non-blocking
                    time.sleep(0.01)
        except OSError as error:
            self._give_up(error)
        return size

    def _is_ready(self) -> bool:
        """Tell whether a write would not block now, after a wait of at most `patience_s`."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        # After one wait in vain there is no further wait, until the reader reads again.
        timeout_ms = None if self.patience_s is None else 0 if self._is_slow else round(1000 * self.patience_s)
        self._is_slow = not poll.poll(timeout_ms)
        return not self._is_slow

    def _give_up(self, error: OSError) -> None:
        """Record a failure. Unless it may pass, redirect the descriptor to /dev/null."""
        self.error = self.error or error
        if error.errno in _PASSING:
            return
        # Redirect the descriptor itself: libraries and child processes write to it too.
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._descriptor)
            os.close(null)
        except OSError:  # no descriptor is left: later writes fail like this one, and are ignored
            pass


def protect(patience_s: float | None = None) -> None:
    """Make writes to `sys.stdout` and `sys.stderr` safe until the process ends.

    A stream that is not of this process (that of a test or a notebook) is not changed. A closed standard descriptor is
    opened on /dev/null: otherwise the next file that is opened would take its number and receive the printed text.

    Args:
        patience_s: seconds to wait for a pipe that nobody reads; None waits without limit.
    """
    _open_closed_descriptors()
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:
            stream = open(descriptor, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - lives on
        target = _target(stream)
        if target is None and _descriptor(stream) == descriptor:
            target = _Target(descriptor)
            setattr(sys, name, _wrap(stream, target))
        if target is not None:
            target.patience_s = patience_s


def lost_output() -> str | None:
    """The cause of incomplete standard output; None if it is complete, or if the reader closed the pipe (`| head`)."""
    target = _target(sys.stdout)
    if target is None:
        return None
    sys.stdout.flush()
    if target.error is None or target.error.errno == errno.EPIPE:
        return None
    return target.error.strerror or str(target.error)


def reader_has_left() -> bool:
    """Tell whether standard output cannot reach a reader any more."""
    target = _target(sys.stdout)
    return target is not None and target.error is not None and target.error.errno not in _PASSING


def _open_closed_descriptors() -> None:
    """Open each closed one of the descriptors 0, 1 and 2 on /dev/null."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
            else:
                os.set_inheritable(descriptor, True)


def _wrap(stream: TextIO, target: _Target) -> TextIO:
    try:
        stream.flush()
    except OSError as error:
        target._give_up(error)
    unbuffered = bool(getattr(stream, "write_through", False))
    binary: Any = target if unbuffered else io.BufferedWriter(target)  # `python -u` has an unbuffered stream
    wrapped = io.TextIOWrapper(
        binary,
        encoding=stream.encoding,
        errors="backslashreplace",  # a name that the terminal cannot show must not end the program
        line_buffering=bool(getattr(stream, "line_buffering", False)),
        write_through=unbuffered,
    )
    target.replaced = stream
    setattr(wrapped, _MARK, target)
    return wrapped


def _target(stream: Any) -> _Target | None:
    target: _Target | None = getattr(stream, _MARK, None)
    return target


def _descriptor(stream: Any) -> int | None:
    try:
        descriptor: int = stream.fileno()
    except (AttributeError, OSError, ValueError):
        return None
    return descriptor
