"""What a rank is and how much it takes."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Callable
from typing import Any

import torch

from fusionseg.distributed.world import World
from fusionseg.utils.machine import available_cpus


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory of this process: the device's, or the host's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def describe_rank(world: World) -> dict[str, Any]:
    """What environment.json says of a rank."""
    device = world.device
    return {
        "rank": world.rank,
        "host": socket.gethostname(),
        "device": str(device),
        "name": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cpus": available_cpus(),
    }


def threads_per_rank(world: World) -> int:
    """CPUs that this rank may use without taking them from others: srun may give each its own, torchrun does not."""
    own = socket.gethostname(), os.sched_getaffinity(0)
    sharing = sum(host == own[0] and bool(cpus & own[1]) for host, cpus in world.all_gather_object(own))
    return max(1, available_cpus() // sharing)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the device's work included."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
