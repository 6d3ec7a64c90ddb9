"""Hardware that a rank runs on: its device, its CPU threads, its peak memory."""

from __future__ import annotations

import os
import resource
import socket
from typing import Any

import torch

from fusionseg.distributed.world import World
from fusionseg.utils.machine import available_cpus


def peak_memory_gb(device: torch.device) -> float:
    """Return the peak memory of this process in GB (1e9 bytes): device memory on a GPU, host memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def rank_info(world: World) -> dict[str, Any]:
    """Return the entry of this rank in environment.json: host, device, threads, CPUs."""
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
    """Return the number of CPU threads that this rank may use. All ranks must call this function.

    srun may bind each rank to its own CPUs; under torchrun the ranks of a node share all of them. The available CPUs
    are divided among the ranks of this host whose affinity masks overlap.
    """
    own = socket.gethostname(), os.sched_getaffinity(0)
    sharing = sum(host == own[0] and bool(cpus & own[1]) for host, cpus in world.all_gather_object(own))
    return max(1, available_cpus() // sharing)
