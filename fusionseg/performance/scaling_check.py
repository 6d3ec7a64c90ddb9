"""The scaling model against real processes on this machine, through DistributedDataParallel and gloo."""

from __future__ import annotations

import copy
import json
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fusionseg.config.networks import network_sections
from fusionseg.distributed.gradient_allreduce import annotate_allreduce
from fusionseg.distributed.launch import Launch
from fusionseg.distributed.world import World
from fusionseg.models import build_model
from fusionseg.performance.collective_speed import all_reduce_seconds
from fusionseg.performance.scaling_model import Link, Network, StepTime, Workload, expected_slowest, fit_link, step_time
from fusionseg.utils.files import write_json

SIZES = (4, 1 << 20, 16 << 20)
KEPT = 0.8  # of the turns: the slowest are those in which the machine did something else
BUCKET_MB = 4  # small, so that there are several, and something to hide
_CHANNELS, _PATCH = (16, 32, 64, 128, 256), 32


@dataclass(frozen=True)
class Check:
    """Prediction and measurement for one number of processes; means over the turns that were kept."""

    processes: int
    workload: Workload
    """Measured while all processes compute and none communicates."""
    link: Link | None
    """Fitted to all-reduces of the same number of processes."""
    slowest: float
    """The slowest process's computing over the mean, measured."""
    expected_slowest: float
    """The same by the model, for the measured spread."""
    hidden: StepTime
    """Predicted, if communication costs the backward pass nothing."""
    added: StepTime
    """Predicted, if nothing is hidden: processes that share their cores."""
    measured_s: float
    """A step with communication."""

    @property
    def error(self) -> float:
        """Of the prediction without overlap, as a share of the measured time."""
        return self.added.total_s / self.measured_s - 1


def check(processes: int, turns: int, threads: int = 1) -> Check:
    """Start this many processes, let them compute and train in turns, and predict the one from the other.

    Args:
        turns: in each of them all processes compute a step alone, then together, then reduce.
        threads: of each process.
    """
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        out = Path(folder) / "times.json"
        torch.multiprocessing.start_processes(
            _rank, args=(processes, port, turns, threads, str(out)), nprocs=processes, start_method="spawn"
        )
        measured = json.loads(out.read_text(encoding="utf-8"))
    return compare(processes, np.array(measured["steps"]), np.array(measured["reduce"]), measured["gradient_bytes"])


def compare(processes: int, steps: NDArray[Any], reduce: NDArray[Any], gradient_bytes: int) -> Check:
    """The model's prediction beside what was measured.

    Args:
        steps: seconds (rank, turn, 4): forward, backward and optimizer alone, and the whole step together.
        reduce: seconds (rank, turn, size) of an all-reduce of each of SIZES; no sizes for one process.
    """
    wall = steps.max(axis=0).sum(axis=-1)
    kept = wall <= np.quantile(wall, KEPT)
    steps, reduce = steps[:, kept], reduce[:, kept]
    forward, backward, optimizer, together = (float(steps[..., part].mean()) for part in range(4))
    micro = steps[..., 0] + steps[..., 1]
    # Of the ranks within a turn: what slows all of them alike is no straggling.
    spread = float(np.sqrt(micro.var(axis=0, ddof=1).mean()) / micro.mean()) if processes > 1 else 0.0
    workload = Workload(
        micro_batch_s=forward + backward,
        gradient_bytes=gradient_bytes,
        optimizer_s=optimizer,
        backward_share=backward / (forward + backward),
        bucket_bytes=BUCKET_MB * 2**20,
        spread=spread,
    )
    link = fit_link(SIZES, [float(x) for x in reduce.mean(axis=(0, 1))], processes) if processes > 1 else None
    network = Network(processes, link or Link(1.0, 0.0), Link(1.0, 0.0))
    hidden, added = (step_time(replace(workload, overlap=share), processes, 1, network) for share in (1.0, 0.0))
    return Check(
        processes,
        workload,
        link,
        slowest=float((micro.max(axis=0) / micro.mean(axis=0)).mean()),
        expected_slowest=expected_slowest(processes, spread, workload.distribution),
        hidden=hidden,
        added=added,
        measured_s=together,
    )


def _rank(rank: int, processes: int, port: int, turns: int, threads: int, out: str) -> None:
    """One of the processes; rank 0 writes what all have measured."""
    torch.set_num_threads(threads)
    world = World(Launch(rank, processes, rank, processes, ("127.0.0.1", port)), torch.device("cpu"))
    torch.manual_seed(0)
    section = network_sections()["monai_unet"].model_validate({"name": "monai_unet", "channels": _CHANNELS})
    model = build_model(section, in_channels=1, out_channels=2, patch=(_PATCH,) * 3).train()
    image = torch.randn(1, 1, *(_PATCH,) * 3)
    alone = _Step(model, image, world, shared=False)
    together = _Step(copy.deepcopy(model), image, world, shared=True)
    steps, reduce = [], []
    for turn in range(turns + 2):
        own = [*alone.times(), sum(together.times())]
        sizes = [all_reduce_seconds(world, size, repeats=3) for size in SIZES] if processes > 1 else []
        if turn >= 2:
            steps.append(own)
            reduce.append(sizes)
    everyone = world.all_gather_object((steps, reduce))
    if world.is_rank_zero:
        gradient_bytes = sum(parameter.nbytes for parameter in model.parameters())
        times, reductions = zip(*everyone, strict=True)
        write_json(Path(out), {"steps": times, "reduce": reductions, "gradient_bytes": gradient_bytes})
    world.close()


class _Step:
    """A training step on one resident patch, with the ranks' gradients averaged or without."""

    def __init__(self, model: nn.Module, image: Tensor, world: World, *, shared: bool) -> None:
        self.image, self.world = image, world
        self.shared = shared and world.size > 1
        self.model: Callable[[Tensor], Tensor] = model
        if self.shared:
            self.model = ddp = DistributedDataParallel(
                model, gradient_as_bucket_view=True, static_graph=True, bucket_cap_mb=BUCKET_MB
            )
            annotate_allreduce(ddp, world.device)  # as the engine's own
        self.optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def times(self) -> Sequence[float]:
        """Seconds of forward, backward and optimizer."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.world.size > 1:
            dist.barrier()
        marks = [time.perf_counter()]
        loss = self.model(self.image).square().mean()
        marks.append(time.perf_counter())
        loss.backward()  # type: ignore[no-untyped-call]
        marks.append(time.perf_counter())
        if self.shared:
            self.world.all_reduce_(loss.detach())
        self.optimizer.step()
        marks.append(time.perf_counter())
        return [end - start for start, end in pairwise(marks)]
