"""What this job may use of the machine: never what the machine has."""

from __future__ import annotations

import os
from pathlib import Path

import psutil


def available_cpus() -> int:
    """CPUs this process may run on: its affinity mask, cut by the control group's quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quota = _cgroup_text("cpu.max").split()  # "200000 100000", or "max 100000"
    if len(quota) == 2 and quota[0].isdigit():
        cpus = min(cpus, max(1, int(quota[0]) // int(quota[1])))
    return cpus


def available_memory_bytes() -> int:
    """Host memory that can still be taken: what is free, cut by the control group's limit."""
    free = int(psutil.virtual_memory().available)
    limit, used = _cgroup_text("memory.max").strip(), _cgroup_text("memory.current").strip()
    if limit.isdigit() and used.isdigit():
        free = min(free, max(0, int(limit) - int(used)))
    return free


def _cgroup_text(name: str) -> str:
    """A file of this process's control group (version 2); empty where there is none."""
    try:
        entry = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        own = Path("/sys/fs/cgroup") / entry[3:].lstrip("/") / name
        return own.read_text() if own.exists() else (Path("/sys/fs/cgroup") / name).read_text()
    except (OSError, StopIteration):
        return ""
