"""The program's own messages: to the screen, and to log.txt of the run."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

log = logging.getLogger("fusionseg")


class _Plain(logging.Formatter):
    """The message as it is; a warning says that it is one, and which rank it comes from."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = f"rank {rank}: " if rank else ""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return f"{self._rank}{level}{record.getMessage()}"


def start_logging(rank: int = 0) -> None:
    """Messages of rank 0, and the warnings of all ranks, go to stderr."""
    log.handlers.clear()
    log.propagate = False
    log.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain(rank))
    log.addHandler(handler)


def log_to_file(path: Path) -> logging.Handler:
    """Append to a run's log.txt, with the time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    return handler
