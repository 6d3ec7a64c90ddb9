"""CPUs and memory that this job may use, which are often less than the machine has; age and memory of this process."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def available_cpus() -> int:
    """Count the CPUs that this process may use, by its affinity mask and the quotas of its control groups."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    for folder in _groups("cpu"):
        quota = _words(folder / "cpu.max") or _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(quota) == 2 and quota[0].isdigit():  # "max" and -1 stand for no limit
            cpus = min(cpus, max(1, int(quota[0]) // int(quota[1])))
    return cpus


def available_memory_bytes() -> int:
    """Bytes of host memory that this process can still allocate: the smallest of several limits.

    They are the free memory of the machine, the control groups (versions 1 and 2), the limits of the process (ulimit -v
    and -d) and the memory of a SLURM job, which SLURM may enforce without control groups. The limits of all groups
    above the process count, since a scheduler limits the group of the job. The memory use of a group includes cached
    pages of files. The kernel frees these when memory is needed, so they count as free.
    """
    free = min([int(psutil.virtual_memory().available), *_left_by_limits(), *_left_by_slurm()])
    for folder in _groups("memory"):
        for limit_file, used_file, reclaimable in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.high", "memory.current", "inactive_file"),  # above it, the kernel slows the group down
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _words(folder / limit_file), _words(folder / used_file)
            if limit and used and limit[0].isdigit():
                stat = _words(folder / "memory.stat")
                cached = dict(zip(stat[::2], stat[1::2], strict=False)).get(reclaimable, "0")
                free = min(free, max(0, int(limit[0]) - int(used[0]) + int(cached)))
    return free


def _left_by_limits() -> Iterator[int]:
    """Bytes that each limit of this process leaves, where it is set."""
    for limit, field in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            yield max(0, soft - process_memory_bytes(field))


def _left_by_slurm() -> Iterator[int]:
    """Bytes that the memory of a SLURM job on this node leaves beside this process, if the job states it."""
    megabytes = _number("SLURM_MEM_PER_NODE") or _number("SLURM_MEM_PER_CPU") * _number("SLURM_CPUS_ON_NODE")
    if megabytes > 0:  # 0 is all memory of the node
        yield max(0, megabytes * 2**20 - process_memory_bytes("VmRSS"))


def _number(variable: str) -> int:
    """The number in a variable of the environment; 0 if there is none."""
    text = os.environ.get(variable, "")
    return int(text) if text.isdigit() else 0


def process_stat(pid: int) -> tuple[str, int] | None:
    """The state of a process (a letter, see proc(5)), and its start in clock ticks since the start of the machine.

    The start tells a process from a later one with the same ID. A time of day would change when the clock is set.

    Args:
        pid: the ID of the process.

    Returns:
        None if there is no such process.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return fields[0], int(fields[19])  # fields 3 and 22


def process_age_s() -> float:
    """Seconds since this process started, including the start of Python."""
    stat = process_stat(os.getpid())
    assert stat is not None, "/proc shows every living process"
    _, began_ticks = stat
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began_ticks / os.sysconf("SC_CLK_TCK")


def process_memory_bytes(field: str) -> int:
    """Bytes of memory of this process, from /proc/self/status.

    Args:
        field: VmRSS for the resident memory now, VmHWM for its peak, VmSize for the addresses, VmData for the data.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control group and of all groups above it, for cgroups version 2 and 1."""
    try:
        lines = OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUP_ROOT / controller if controllers else CGROUP_ROOT
        folder = root / path.lstrip("/")
        while True:
            if folder.is_dir():  # in a container the path may be that of the host; the root is then the group
                yield folder
            if folder == root:
                break
            folder = folder.parent


def _words(path: Path) -> list[str]:
    """The words of a file; none if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError:
        return []
