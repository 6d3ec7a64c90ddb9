"""The program's messages: their levels, and the places they go to (the screen, and log.txt of a run)."""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import TextIO

from fusionseg.utils.tables import printable

log = logging.getLogger("fusionseg")

RESULT = 25
"""Level of the result of a command. `--quiet` shows such messages, and hides those of level INFO."""
logging.addLevelName(RESULT, "RESULT")


class Verbosity(Enum):
    """The lowest level of the messages on the screen."""

    QUIET = RESULT
    NORMAL = logging.INFO
    VERBOSE = logging.DEBUG


_verbosity = Verbosity.NORMAL


class _Plain(logging.Formatter):
    """A formatter without time and name: an optional rank (if it is not 0), the level of a warning, and the message."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = f"rank {rank}: " if rank else ""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return printable(f"{self._rank}{level}{record.getMessage()}")


class _Dated(logging.Formatter):
    """The formatter of a file: time, level and message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _Screen(logging.StreamHandler):  # type: ignore[type-arg]
    """A handler that writes to the current `sys.stderr`, which may have been replaced since the handler was made."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: object) -> None:
        pass


class _LogFile(logging.Handler):
    """A log file whose write errors do not end the program.

    Lines that the disk refuses are written when it takes lines again. The beginning of such a time is a warning.
    """

    _KEPT = 10_000
    """Lines that are kept at most; beyond them the oldest are lost."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._unwritten: deque[bytes] = deque(maxlen=self._KEPT)
        self._has_failed = self._within_line = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = f"{self.format(record)}\n".encode()
        except Exception:  # as the handlers of `logging` do with a message that does not fit its arguments
            self.handleError(record)
            return
        self._unwritten.append(line)
        try:
            while self._unwritten:
                self._write(self._unwritten[0])
                self._unwritten.popleft()
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                log.warning("%s: cannot be written (%s): its lines wait for the disk", self._path, error.strerror)
            return
        self._has_failed = False

    def close(self) -> None:
        with suppress(OSError):
            self._file.close()
        super().close()

    def _write(self, line: bytes) -> None:
        """Write a line. What a full disk has taken of a line is ended before the line is written again."""
        left = b"\n" + line if self._within_line else line
        while left:
            written = self._file.write(left)
            left = left[written:]
            self._within_line = bool(left)


def set_verbosity(verbosity: Verbosity) -> None:
    """Choose the messages that the screen shows. An entry point calls this once, before `start_logging`."""
    global _verbosity
    _verbosity = verbosity


def is_quiet() -> bool:
    """Tell whether the screen shows warnings, errors and results only, without progress."""
    return _verbosity is Verbosity.QUIET


def start_logging(rank: int = 0, *, results: bool = False) -> None:
    """Send the messages of rank 0, and the warnings of all ranks, to standard error.

    Args:
        rank: rank of this process.
        results: send the results of all ranks too.
    """
    log.handlers.clear()
    log.propagate = False
    least = RESULT if results else logging.WARNING
    log.setLevel(min(_verbosity.value, logging.INFO) if rank == 0 else least)
    handler = _Screen()
    handler.setLevel(_verbosity.value)
    handler.setFormatter(_Plain(rank))
    log.addHandler(handler)


def log_to_file(path: Path) -> logging.Handler:
    """Append the messages to a file, with their time and level, and return the handler.

    The file has all messages, also under `--quiet`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(path)
    handler.setFormatter(_Dated())
    log.addHandler(handler)
    return handler


_RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")


def process_rank() -> int:
    """The rank that the environment gives this process: torchrun's, else mpirun's, else srun's, else 0.

    A value that is not a number counts as 0. `fusionseg.distributed.launch` reports such a value.
    """
    text = next((found for name in _RANKS if (found := os.environ.get(name))), "0")
    return int(text) if text.isdecimal() else 0
