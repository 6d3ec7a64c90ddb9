"""Locks of folders: one process at a time works in a folder, also on file systems without file locks.

The process holds a lock on `.lock` until it ends, and the file `.owner` names it. On a file system without file locks,
and on one that other machines may have mounted (some keep file locks to one machine), `.owner` decides: O_EXCL, which
these file systems support, makes sure that only one process creates it. A process of the same machine is looked up; one
of another machine lives if it renews its heartbeat.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fusionseg.utils.files import open_no_link
from fusionseg.utils.locks.file_systems import is_shared
from fusionseg.utils.locks.owner import OWNER, Owner, file_system_time, read_owner, text_of, this_process
from fusionseg.utils.logs import log

LOCK = ".lock"
BEAT_S = 5.0
"""Seconds between two heartbeats."""
SILENT_S = 6 * BEAT_S
"""Seconds without a heartbeat after which a process on another machine counts as ended."""
REQUEUED_SILENT_S = 2 * BEAT_S + 1
"""The same for an earlier start of the same SLURM job: SLURM ends a job before it requeues it. Every silent owner is
watched for this time, since Lustre stamps files with the clocks of the hosts, which may differ."""
_SURE_S = 3600.0
"""Age of a heartbeat that no difference of clocks explains."""
_SETTLE_S = 0.2
"""Seconds between the creation of `.owner` and the check that it still names this process."""
_POLL_S = 0.5


class HeldError(Exception):
    """Another process holds the folder. The text names the process, if it is known."""


@dataclass(frozen=True)
class Loss:
    """A locked folder that is no longer at its path, or that another process has taken over."""

    what: str
    """The event, in words that follow the path of the folder: "was removed"."""
    now: Path | None
    """The place to which the folder was moved; None if it is not known."""


class FolderLock:
    """A lock on a folder.

    Args:
        folder: must exist when the lock is acquired.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: IO[str] | None = None
        self._descriptor = -1
        self._me = Owner()
        self._heart: _Heart | None = None

    def acquire(self) -> None:
        """Acquire the lock, or raise.

        A recent heartbeat of another machine, where file locks cannot be relied on, is watched for at most `SILENT_S`.

        Raises:
            HeldError: another process holds the lock.
            OSError: the folder cannot be written.
        """
        self._me = this_process(uuid.uuid4().hex)
        file = open_no_link(self.folder / LOCK, "a")
        try:
            if self._lock(file) and not is_shared(self.folder):
                self._replace_owner()
            else:
                self._create_owner()
            # It stays that of this folder, wherever the folder is moved to.
            self._descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        except BaseException:
            file.close()
            raise
        self._file = file
        self._heart = _Heart(self._descriptor, self._me)

    def _lock(self, file: IO[str]) -> bool:
        """Lock an open file; return whether the file system has locks.

        Raises:
            HeldError: another process holds the lock.
        """
        for left in (2, 1, 0):  # another process that calls `is_held` has the lock for an instant
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except (BlockingIOError, PermissionError):
                if not left:
                    raise HeldError(_holder_of(self.folder)) from None
                time.sleep(0.1)
            except OSError as error:
                log.warning(
                    "%s: file locks do not work here (%s): the file %s, renewed every %.0f s, keeps a second process"
                    " out of this folder",
                    self.folder,
                    error.strerror,
                    OWNER,
                    BEAT_S,
                )
                return False
        raise AssertionError("unreachable")

    def _replace_owner(self) -> None:
        """Write `.owner`. The file lock has decided who holds the folder: without the file, messages say less."""
        with suppress(OSError), open_no_link(self.folder / OWNER, "w") as file:
            file.write(text_of(self._me))

    def _create_owner(self) -> None:
        """Acquire the lock by `.owner`.

        Raises:
            HeldError: another process holds the lock.
        """
        path = self.folder / OWNER
        for _ in range(3):
            try:
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                self._remove_ended()
                continue
            with open(handle, "w", encoding="utf-8") as file:
                file.write(text_of(self._me))
            time.sleep(_SETTLE_S)  # two processes may find the same ended owner: the later one replaces the file
            if (found := read_owner(self.folder)) is not None and found[0] == self._me:
                return
        raise HeldError("another process")

    def _remove_ended(self) -> None:
        """Remove the `.owner` of a process that has ended.

        Raises:
            HeldError: the process lives.
        """
        if (found := read_owner(self.folder)) is None:
            return
        owner, stamp = found
        age = max(0.0, file_system_time(self.folder) - stamp)
        if owner.is_on_this_machine:
            if owner.lives:
                raise HeldError(owner.describe(age))
        else:
            requeued = bool(owner.job) and owner.job == self._me.job and owner.restarts < self._me.restarts
            watch_s = max((REQUEUED_SILENT_S if requeued else SILENT_S) - age, REQUEUED_SILENT_S)
            if age < _SURE_S and self._renews(stamp, watch_s, owner):
                raise HeldError(owner.describe(0.0))
        if read_owner(self.folder) != found:
            return  # another process has removed it
        log.warning("%s: taken over from %s, which has ended", self.folder, owner.describe(age))
        with suppress(FileNotFoundError):
            (self.folder / OWNER).unlink()

    def _renews(self, stamp: float, watch_s: float, owner: Owner) -> bool:
        """Tell whether an owner on another machine renews its heartbeat.

        Args:
            stamp: the time stamp of `.owner`.
            watch_s: seconds to wait. A file system that does not answer for a while counts as one look.
            owner: for the message.
        """
        log.info("%s: %s may have ended: waiting up to %.0f s", self.folder, owner.describe(None), watch_s)
        looks = 0.0
        while looks < watch_s:
            time.sleep(_POLL_S)
            looks += _POLL_S
            found = read_owner(self.folder)
            if found is None:  # the owner has just released the lock
                return False
            if found != (owner, stamp):
                return True
        return False

    def release(self) -> None:
        """Release the lock. Without a lock this does nothing."""
        if self._file is None or self._heart is None:
            return
        stopped = self._heart.stop()
        with suppress(OSError):
            if _owner_in(self._descriptor) == self._me:
                os.unlink(OWNER, dir_fd=self._descriptor)
        self._file.close()
        if stopped:  # otherwise the thread waits for the file system, and would then find another file there
            os.close(self._descriptor)
        self._file, self._heart, self._descriptor = None, None, -1

    def loss(self) -> Loss | None:
        """Find out whether the locked folder was removed, moved, replaced or taken over; None if it was not."""
        if self._file is None:
            return None
        try:
            here = os.stat(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            here = None
        except OSError:  # the file system does not answer: the write that follows tells
            return None
        found = None
        with suppress(OSError):
            found = read_owner(self.folder)
        if _is_same(here, _stat_of(self._descriptor)):
            if found is not None and found[0].token not in ("", self._me.token):
                return Loss(f"was taken over by {found[0].describe(None)}", self.folder)
            return None
        if found is not None and found[0].token == self._me.token:
            return None  # some file systems number a folder anew
        now = _path_of(self._descriptor)
        what = "was removed" if now is None else f"was moved to {now}"
        return Loss(what if here is None else f"{what}, and another folder is in its place", now)


class _Heart:
    """The thread that renews the time stamp of `.owner`."""

    def __init__(self, descriptor: int, me: Owner) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=_beat, args=(descriptor, me, self._ended), daemon=True)
        self._thread.start()

    def stop(self) -> bool:
        """Stop the thread; return whether it has ended."""
        self._ended.set()
        self._thread.join(1.0)
        return not self._thread.is_alive()


def _beat(descriptor: int, me: Owner, ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        with suppress(OSError):
            if _owner_in(descriptor) == me:
                os.utime(OWNER, dir_fd=descriptor)


def _owner_in(descriptor: int) -> Owner | None:
    """The owner of an open folder, wherever it is now."""
    found = read_owner(descriptor)
    return None if found is None else found[0]


def _stat_of(descriptor: int) -> os.stat_result | None:
    try:
        return os.fstat(descriptor)
    except OSError:  # NFS: the folder no longer exists
        return None


def _is_same(one: os.stat_result | None, other: os.stat_result | None) -> bool:
    return one is not None and other is not None and os.path.samestat(one, other)


def _path_of(descriptor: int) -> Path | None:
    """The place of an open folder; None if it was removed, or if the kernel does not tell."""
    try:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        return path if os.path.samestat(path.stat(), os.fstat(descriptor)) else None
    except OSError:
        return None


def _holder_of(folder: Path) -> str:
    """Describe the process that holds a folder by a file lock."""
    found = None
    with suppress(OSError):
        found = read_owner(folder)
    if found is None:
        return "another process"
    return found[0].describe(max(0.0, file_system_time(folder) - found[1]))


def is_held(folder: Path) -> bool:
    """Tell whether a process holds the lock on a folder. Nothing is written.

    Where `.owner` decides about a process on another machine, its age is compared with the clock of this machine.
    """
    try:
        with (folder / LOCK).open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if not is_shared(folder):
            return False
    except (BlockingIOError, PermissionError):
        return True
    except OSError:  # the file does not exist, or the file system has no locks
        pass
    try:
        found = read_owner(folder)
    except OSError:
        return False
    if found is None:
        return False
    owner, stamp = found
    return owner.lives if owner.is_on_this_machine else time.time() - stamp < 2 * SILENT_S
