"""Processes of this host, as /proc shows them, and the stacks of this one."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from fusionseg.utils.machine import process_stat

_STATES = {
    "T": "its process is stopped (SIGSTOP)",
    "t": "its process is stopped by a debugger",
    "D": "its process waits for a disk or a network file system",
    "Z": "its process has ended",
    "R": "its process is running",
    "S": "its process sleeps",
}
_GONE = "its process has ended"


def describe_process(pid: int, born: int) -> str:
    """Say what a process of this host does.

    Args:
        pid: its id.
        born: its start in clock ticks; a process with the same id and another start is not meant.
    """
    stat = process_stat(pid)
    return _GONE if stat is None or stat[1] != born else _STATES.get(stat[0], "")


def kill_process(pid: int, born: int) -> None:
    """Kill a process of this host, also one that is stopped. Nothing happens if it has ended."""
    stat = process_stat(pid)
    if stat is not None and stat[1] == born:
        with suppress(OSError):  # ended meanwhile, or belongs to another user
            os.kill(pid, signal.SIGKILL)


def kill_workers() -> None:
    """Kill the worker processes of this one: they would outlive it."""
    for child in multiprocessing.active_children():
        child.kill()


def write_stacks(folder: Path, name: str, heading: str) -> Path | None:
    """Append the Python stacks of all threads of this process to a file.

    Args:
        folder: the folder; it is made if only it is missing.
        name: of the file.
        heading: the first line.

    Returns:
        The file; None if it cannot be written.
    """
    path = folder / name
    with suppress(OSError):
        folder.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {heading}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
            file.write("\n")
        return path
    return None
