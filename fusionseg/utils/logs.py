"""The program's own messages: to the screen, and to log.txt of the run."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TextIO

log = logging.getLogger("fusionseg")


class _Plain(logging.Formatter):
    """The message as it is; a warning says that it is one, and which rank it comes from."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = f"rank {rank}: " if rank else ""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return f"{self._rank}{level}{record.getMessage()}"


class _Screen(logging.StreamHandler):  # type: ignore[type-arg]
    """To what is standard error when the message comes: it may have been replaced since."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: object) -> None:
        pass


class _LogFile(logging.FileHandler):
    """A file that does not end what is logged: what cannot be written is missed, and said once."""

    _has_failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._has_failed:
            self._has_failed = True
            log.warning("%s: cannot be written (%s): lines are missing there", self.baseFilename, sys.exc_info()[1])


def start_logging(rank: int = 0) -> None:
    """Messages of rank 0, and the warnings of all ranks, go to stderr."""
    log.handlers.clear()
    log.propagate = False
    log.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    handler = _Screen()
    handler.setFormatter(_Plain(rank))
    log.addHandler(handler)


def log_to_file(path: Path) -> logging.Handler:
    """Append to a run's log.txt, with the time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    return handler
