"""Check of the scaling model against measurements: processes on this machine, DistributedDataParallel, gloo."""

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

from fusionseg.config.registry import networks
from fusionseg.distributed.device_speed import all_reduce_seconds
from fusionseg.distributed.gradient_allreduce import register_allreduce
from fusionseg.distributed.launch import Launch
from fusionseg.distributed.world import World
from fusionseg.models import build_model
from fusionseg.performance.scaling_model import Link, Network, StepTime, Workload, expected_slowest, fit_link, step_time
from fusionseg.utils.files import write_json

SIZES = (4, 1 << 20, 16 << 20)
KEPT = 0.8  # share of the rounds that count; in the slowest ones the machine was busy with other work
BUCKET_MB = 4  # small, so that there are several buckets and the backward pass can overlap some of them
_CHANNELS, _PATCH = (16, 32, 64, 128, 256), 32


@dataclass(frozen=True)
class ScalingCheck:
    """Prediction and measurement for one number of processes; means over the rounds that count."""

    processes: int
    workload: Workload
    """Measured workload, while all processes compute and none communicates."""
    link: Link | None
    """Link fitted to measured all-reduces of all processes; None for one process."""
    slowest: float
    """Measured compute time of the slowest process, divided by the mean."""
    expected_slowest: float
    """Prediction of `slowest` from the measured spread."""
    hidden: StepTime
    """Prediction with full overlap of communication and backward pass."""
    added: StepTime
    """Prediction without overlap, as for processes that share their cores."""
    measured_s: float
    """Measured step with communication, in seconds."""

    @property
    def error(self) -> float:
        """Relative error of the prediction without overlap."""
        return self.added.total_s / self.measured_s - 1


def check_scaling(processes: int, rounds: int, threads: int = 1) -> ScalingCheck:
    """Measure steps with and without communication in several processes, and predict the first from the second.

    Args:
        processes: number of processes to start.
        rounds: measured rounds. In each, all processes compute a step without communication, then one with it, then
            all-reduces alone.
        threads: threads of each process.
    """
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        out = Path(folder) / "times.json"
        torch.multiprocessing.start_processes(
            _rank, args=(processes, port, rounds, threads, str(out)), nprocs=processes, start_method="spawn"
        )
        measured = json.loads(out.read_text(encoding="utf-8"))
    return compare(processes, np.array(measured["steps"]), np.array(measured["reduce"]), measured["gradient_bytes"])


def compare(processes: int, steps: NDArray[Any], reduce: NDArray[Any], gradient_bytes: int) -> ScalingCheck:
    """Predict the step with communication from the steps without it and the all-reduces alone.

    Args:
        processes: number of processes.
        steps: seconds, (rank, round, 4): forward, backward and optimizer without communication, and the whole step
            with communication.
        reduce: seconds, (rank, round, size), of an all-reduce of each of SIZES; no sizes for one process.
        gradient_bytes: size of all gradients.
    """
    wall = steps.max(axis=0).sum(axis=-1)
    kept = wall <= np.quantile(wall, KEPT)
    steps, reduce = steps[:, kept], reduce[:, kept]
    forward, backward, optimizer, together = (float(steps[..., part].mean()) for part in range(4))
    micro = steps[..., 0] + steps[..., 1]
    # The spread between ranks within a round. What slows all ranks alike makes none of them a straggler.
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
    return ScalingCheck(
        processes,
        workload,
        link,
        slowest=float((micro.max(axis=0) / micro.mean(axis=0)).mean()),
        expected_slowest=expected_slowest(processes, spread, workload.distribution),
        hidden=hidden,
        added=added,
        measured_s=together,
    )


def _rank(rank: int, processes: int, port: int, rounds: int, threads: int, out: str) -> None:
    """Run one of the processes; rank 0 writes the measurements of all."""
    torch.set_num_threads(threads)
    world = World(Launch(rank, processes, rank, processes, ("127.0.0.1", port)), torch.device("cpu"))
    torch.manual_seed(0)
    section = networks.section("monai_unet").model_validate({"name": "monai_unet", "channels": _CHANNELS})
    model = build_model(section, in_channels=1, out_channels=2, patch=(_PATCH,) * 3).train()
    image = torch.randn(1, 1, *(_PATCH,) * 3)
    local = _Step(model, image, world, communicate=False)
    distributed = _Step(copy.deepcopy(model), image, world, communicate=True)
    steps, reduce = [], []
    for index in range(rounds + 2):
        step_times = [*local.times(), sum(distributed.times())]
        reduce_times = [all_reduce_seconds(world, size, repeats=3) for size in SIZES] if processes > 1 else []
        if index >= 2:  # the first rounds warm up
            steps.append(step_times)
            reduce.append(reduce_times)
    of_all_ranks = world.all_gather_object((steps, reduce))
    if world.is_rank_zero:
        gradient_bytes = sum(parameter.nbytes for parameter in model.parameters())
        times, reductions = zip(*of_all_ranks, strict=True)
        write_json(Path(out), {"steps": times, "reduce": reductions, "gradient_bytes": gradient_bytes})
    world.close()


class _Step:
    """A training step on one patch in memory, with or without the all-reduce of the gradients."""

    def __init__(self, model: nn.Module, image: Tensor, world: World, *, communicate: bool) -> None:
        self.image, self.world = image, world
        self.communicate = communicate and world.size > 1
        self.model: Callable[[Tensor], Tensor] = model
        if self.communicate:
            self.model = ddp = DistributedDataParallel(
                model, gradient_as_bucket_view=True, static_graph=True, bucket_cap_mb=BUCKET_MB
            )
            register_allreduce(ddp, world.device, bf16=False, ranges=False)  # as in a training
        self.optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def times(self) -> Sequence[float]:
        """Run a step, and return the seconds of forward, backward and optimizer."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.world.size > 1:
            dist.barrier()
        times = [time.perf_counter()]
        loss = self.model(self.image).square().mean()
        times.append(time.perf_counter())
        loss.backward()  # type: ignore[no-untyped-call]
        times.append(time.perf_counter())
        if self.communicate:
            self.world.all_reduce_(loss.detach())
        self.optimizer.step()
        times.append(time.perf_counter())
        return [end - start for start, end in pairwise(times)]
