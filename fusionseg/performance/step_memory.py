"""Measurement of the memory of a training step on the CPU, independent of its estimate: torch's allocator is observed.

The profiler of torch records each allocation and each release of the CPU's allocator, those inside kernels and in the
libraries of torch included. The memory of Python and of the program itself does not count.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile

from fusionseg.config import RunConfig
from fusionseg.distributed.batch_arithmetic import accumulation_steps
from fusionseg.distributed.launch import read_launch
from fusionseg.distributed.world import World
from fusionseg.models.implementation import chosen_implementation
from fusionseg.models.placement import uses_channels_last
from fusionseg.models.sharding.parts import LocalParts
from fusionseg.training.memory.shard_units import find_units
from fusionseg.training.micro_batches import MicroBatch
from fusionseg.training.network import build_network, distribute
from fusionseg.training.numerics.weight_averages import open_averages
from fusionseg.training.optimizer import build_optimizer
from fusionseg.training.precision import Precision
from fusionseg.training.step import TrainStep
from fusionseg.training.tasks.choice import build_task


def measured_step_bytes(
    config: RunConfig, precision: str, *, in_channels: int, out_channels: int, world: World | None = None
) -> int:
    """Train for two steps on random images on the CPU; return the highest number of bytes allocated at the same time.

    With several ranks all of them call it, and each returns its own number. Buffers of the collective operations that
    threads of gloo allocate do not count.

    The second step is like all that follow: the optimizer has its states. It runs on one thread, because the kernels of
    a CPU allocate buffers for each thread in 16 bits.

    Args:
        config: the configuration of the run.
        precision: "fp32" or "bf16".
        in_channels: channels of the images.
        out_channels: outputs of the network.
        world: the ranks; None for one.
    """
    device = torch.device("cpu")
    task = build_task(config)
    world = World(read_launch({}), device) if world is None else world
    micro_steps = min(2, accumulation_steps(config, world.size))
    is_divided = world.size > 1 and config.distributed.parallel == "fsdp"
    units: tuple[str, ...] = ()
    if is_divided:
        units = find_units(task, config, in_channels=in_channels, out_channels=out_channels, device_type="cpu")

    def micro_batches() -> Iterator[MicroBatch]:
        for _ in range(micro_steps):
            (image, *others), target = task.example(in_channels)
            image.normal_()
            if uses_channels_last(config.train.channels_last, model, device.type):
                image = image.contiguous(memory_format=torch.channels_last_3d)
            yield MicroBatch((image, *others), target, 0)

    with _one_thread(), profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        model = build_network(task, config, device, in_channels=in_channels, out_channels=out_channels)
        distributed = distribute(model, config, world, micro_steps, units)
        parts = LocalParts(task.parameter_groups(model)) if is_divided else None
        step = TrainStep(
            distributed.train(),
            task.build_loss(),
            build_optimizer(config.optim, task.parameter_groups(model) if parts is None else parts.groups),
            Precision(precision, "as measured", device.type),
            world,
            accumulation_steps=micro_steps,
            clip_grad=config.train.clip_grad,
            cast_weights=not is_divided and chosen_implementation(config.model.implementation, device.type) == "fused",
            parts=parts,
            averages=open_averages(config.train, model),
        )
        for number in range(2):
            step(number, micro_batches(), config.optim.lr)
    return _peak(profiler)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _peak(profiler: profile) -> int:
    """The highest sum of the bytes allocated and released so far."""
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = profiler.profiler.kineto_results.events()
    changes = sorted(
        (event.start_ns(), event.nbytes())  # type: ignore[attr-defined]  # torch's stub of the event lacks it
        for event in events
        if event.name() == "[memory]"
    )
    live = peak = 0
    for _, change in changes:
        live += change
        peak = max(peak, live)
    return peak
