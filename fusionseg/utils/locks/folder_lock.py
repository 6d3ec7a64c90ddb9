"""Locks of folders: one process at a time works in a folder, also on file systems without file locks.

On a file system with locks, the process holds a lock on `.lock` until it ends. On others, the file `.owner` names the
process by its host, process ID and start time. O_EXCL, which these file systems support, makes sure that only one
process creates it. The owner renews the time stamp of the file every few seconds, since other hosts cannot look up the
process.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from fusionseg.utils.logs import log

LOCK, OWNER = ".lock", ".owner"
BEAT_S = 5.0
"""Seconds between two renewals of `.owner`."""
SILENT_S = 3 * BEAT_S
"""Seconds without a renewal after which an owner on another host counts as ended."""
_SETTLE_S = 0.2
"""Seconds between the creation of `.owner` and the check that it still names this process."""


class HeldError(Exception):
    """Another process holds the folder. The text names the process, if it is known."""


class FolderLock:
    """A lock on a folder.

    Args:
        folder: must exist when the lock is acquired.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: IO[str] | None = None
        self._beat: threading.Event | None = None

    def acquire(self) -> None:
        """Acquire the lock, or raise at once.

        On a file system without locks this logs a warning, and watches an owner on another host for some seconds.

        Raises:
            HeldError: another process holds the lock.
            OSError: the folder cannot be written.
        """
        file = (self.folder / LOCK).open("a", encoding="utf-8")
        try:
            _lock(file)
        except (BlockingIOError, PermissionError):
            file.close()
            raise HeldError("another process") from None
        except OSError as error:
            file.close()
            self._own()
            log.warning(
                "%s: file locks do not work here (%s): only the file %s keeps a second process out of this folder; do"
                " not start a run twice at the same time",
                self.folder,
                error.strerror,
                OWNER,
            )
            return
        self._file = file

    def release(self) -> None:
        """Release the lock. Without a lock this does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._beat is not None:
            self._beat.set()
            self._beat = None
            if _read(self.folder / OWNER) == _myself():
                with suppress(OSError):
                    (self.folder / OWNER).unlink()

    def _own(self) -> None:
        """Acquire the lock by `.owner`, on a file system without file locks.

        Raises:
            HeldError: another process holds the lock.
        """
        path = self.folder / OWNER
        for _ in range(3):
            try:
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                if holder := _holder(path, SILENT_S):
                    raise HeldError(holder) from None
                with suppress(FileNotFoundError):
                    path.unlink()
                continue
            with open(handle, "w", encoding="utf-8") as file:
                json.dump(_myself(), file)
            time.sleep(_SETTLE_S)  # two processes may find the same ended owner: the later one replaces the file
            if _read(path) == _myself():
                self._beat = threading.Event()
                threading.Thread(target=_renew, args=(path, self._beat), daemon=True).start()
                return
        raise HeldError("another process")


def _lock(file: IO[str]) -> None:
    """Lock an open file, or raise the OSError of `flock`."""
    for _ in range(3):  # another process that calls `is_held` has the lock for an instant
        with suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.1)
    return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_held(folder: Path) -> bool:
    """Tell whether a process holds the lock on a folder."""
    try:
        with (folder / LOCK).open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except (BlockingIOError, PermissionError):
        return True
    except OSError:  # the file does not exist, or the file system has no locks
        return _holder(folder / OWNER, 0.0) != ""


def _holder(path: Path, watch_s: float) -> str:
    """Describe the process that `.owner` names, if it lives; otherwise return an empty text.

    Args:
        path: the file `.owner`.
        watch_s: seconds to wait for a renewal by another host; 0 decides by the file's age.
    """
    owner = _read(path)
    try:
        before = path.stat().st_mtime
    except OSError:
        return ""
    host, pid = owner.get("host"), owner.get("pid")
    name = f"process {pid} on {host}" if owner else "another process"
    if host == socket.gethostname() and isinstance(pid, int):
        started = _started(pid)
        return name if started is not None and started == owner.get("started") else ""
    if watch_s == 0:
        return name if time.time() - before < 2 * SILENT_S else ""
    end = time.monotonic() + watch_s
    while time.monotonic() < end:
        time.sleep(0.5)
        try:
            if path.stat().st_mtime != before:
                return name
        except OSError:  # the owner has just released the lock
            return ""
    return ""


def _myself() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}


def _started(pid: int) -> str | None:
    """The start time of a process in the kernel's clock ticks; None if it has ended.

    It tells the process from a later one with the same process ID. A time of day would change when the clock is set.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _renew(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        with suppress(OSError):
            os.utime(path)
