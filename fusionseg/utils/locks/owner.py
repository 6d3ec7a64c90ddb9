"""The file `.owner` in a locked folder: the process that holds the folder, and its heartbeat.

The heartbeat is the time stamp of the file, which the owner renews. The file system sets the stamp, and its age is
measured with the clock of the file system too: the clocks of the hosts may differ.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from fusionseg.utils.files import partial_path
from fusionseg.utils.machine import process_stat

OWNER = ".owner"


@dataclass(frozen=True)
class Owner:
    """The process that holds a folder. Any field may be missing in an old or damaged file."""

    token: str = ""
    """A word of this one lock."""
    host: str = ""
    pid: int = 0
    started: str = ""
    """Start of the process in the kernel's clock ticks. It tells the process from a later one with the same ID."""
    machine: str = ""
    """The boot of the machine and the name space of process IDs, see `machine_id`."""
    job: str = ""
    """The ID of the SLURM job."""
    restarts: int = 0
    """Number of times that SLURM had requeued the job."""
    since: str = ""
    """Time at which the process got the folder, in UTC."""

    @property
    def is_on_this_machine(self) -> bool:
        """Whether the ID of the process means the same process here."""
        if self.machine:
            return self.machine == machine_id()
        return self.host == socket.gethostname()

    @property
    def lives(self) -> bool:
        """Whether the process exists. It must be on this machine."""
        return bool(self.started) and process_start(self.pid) == self.started

    def describe(self, age_s: float | None) -> str:
        """Name the process for a message.

        Args:
            age_s: seconds since the last heartbeat; None if they are not known.
        """
        if not self.host:
            return "another process"
        known = [f"process {self.pid} on {self.host}"]
        known += [f"SLURM job {self.job}"] if self.job else []
        known += [f"since {self.since}"] if self.since else []
        known += [f"last heartbeat {age_s:.0f} s ago"] if age_s is not None else []
        return f"another process ({', '.join(known)})"


def this_process(token: str) -> Owner:
    """Describe this process.

    Args:
        token: a word of the lock.
    """
    pid, restarts = os.getpid(), os.environ.get("SLURM_RESTART_COUNT", "")
    return Owner(
        token=token,
        host=socket.gethostname(),
        pid=pid,
        started=process_start(pid) or "",
        machine=machine_id(),
        job=os.environ.get("SLURM_JOB_ID", ""),
        restarts=int(restarts) if restarts.isdigit() else 0,
        since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
    )


def text_of(owner: Owner) -> str:
    """The content of the file."""
    return json.dumps(asdict(owner))


def read_owner(folder: Path | int) -> tuple[Owner, float] | None:
    """Read the file of a folder.

    It is opened each time: an NFS client asks the server for the time stamp of a file that it opens, and may answer
    `stat` from its own memory for a minute.

    Args:
        folder: its path, or the descriptor of the open folder.

    Returns:
        The owner, without values where they cannot be read, and the time stamp in seconds; None if there is no file.

    Raises:
        OSError: the file system does not answer.
    """
    path, descriptor = (OWNER, folder) if isinstance(folder, int) else (folder / OWNER, None)
    try:
        with open(os.open(path, os.O_RDONLY, dir_fd=descriptor), "rb") as file:
            stamp, content = os.fstat(file.fileno()).st_mtime, file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    return Owner(**_valid(found if isinstance(found, dict) else {})), stamp


def _valid(found: dict[str, Any]) -> dict[str, Any]:
    kinds = {field.name: type(field.default) for field in fields(Owner)}
    return {name: value for name, value in found.items() if name in kinds and type(value) is kinds[name]}


def file_system_time(folder: Path) -> float:
    """The time of the clock that stamps the files of a folder, in seconds; this host's time if it cannot be written."""
    probe = partial_path(folder / "clock")
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with suppress(OSError):
            probe.unlink()


@cache
def machine_id() -> str:
    """The boot of this machine and the name space of its process IDs; empty if the kernel does not tell.

    The host's name is not enough: containers have IDs of their own, and often the name of their host.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def process_start(pid: int) -> str | None:
    """The start of a process in the kernel's clock ticks; None if it has ended."""
    stat = process_stat(pid)
    return None if stat is None or stat[0] in "ZX" else str(stat[1])
