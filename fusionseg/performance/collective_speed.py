"""How fast the ranks talk: the time of an all-reduce, for the doctor's page and for the scaling model."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist

from fusionseg.distributed.world import World


def all_reduce_seconds(world: World, size_bytes: int, repeats: int = 5) -> float:
    """Seconds of an all-reduce of float32 over all ranks, as this rank sees it: the median of some after a first.

    All ranks must call it. They start each one together.

    Args:
        size_bytes: of each rank's data; at least 4.
        repeats: all-reduces that count.
    """
    data = torch.ones(size_bytes // 4, device=world.device)
    times = []
    for _ in range(repeats + 1):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(data)
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[repeats // 2]
