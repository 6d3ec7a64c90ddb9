"""Trial of a micro-batch: real training steps on a network of their own, which leave nothing behind."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import torch

from fusionseg.config import RunConfig
from fusionseg.distributed.batch_arithmetic import accumulation_steps
from fusionseg.distributed.launch import read_launch
from fusionseg.distributed.world import World
from fusionseg.models.implementation import chosen_implementation
from fusionseg.models.placement import uses_channels_last
from fusionseg.observability.ranges import silence
from fusionseg.training.data import TrainingData
from fusionseg.training.memory.out_of_memory import is_out_of_memory
from fusionseg.training.micro_batches import MicroBatch
from fusionseg.training.network import place_network
from fusionseg.training.numerics.weight_averages import open_averages
from fusionseg.training.optimizer import build_optimizer
from fusionseg.training.precision import Precision
from fusionseg.training.step import TrainStep
from fusionseg.training.tasks.choice import build_task

_STEPS = 2
"""The second step is like all that follow: the optimizer has its states."""


def step_failure(config: RunConfig, world: World, data: TrainingData, precision: Precision, *, held: int) -> str:
    """Train for two steps; return an empty text, or why they failed.

    Some kernels refuse large batches by errors of their own. A fault that has nothing to do with the size of the
    micro-batch shows itself again in the training.

    No other rank takes part. The network, its optimizer and the loss scaler are deleted afterwards, the random numbers
    are put back, and the device gets its memory back. So the training that follows is that of a run without a trial.

    Args:
        config: the configuration of the run, with the micro-batch to try.
        world: the ranks.
        data: the data of the run. The samples are those of its first step, or made up where cases are loaded in turn.
        precision: of the forward pass.
        held: bytes of the device that are taken beside the steps.
    """
    on_gpu = world.device.type == "cuda"
    with silence(), torch.random.fork_rng([world.device] if on_gpu else []):
        failure = _failure(config, world, data, precision, held)
    # The tensors of the steps have gone with their frames, and with the error that held them.
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(world.device)
    return failure


def _failure(config: RunConfig, world: World, data: TrainingData, precision: Precision, held: int) -> str:
    try:
        _train(config, world, data, precision, held)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            return "ran out of memory"
        first = str(error).partition("\n")[0]
        return f"failed ({type(error).__name__}: {first})"
    return ""


def _train(config: RunConfig, world: World, data: TrainingData, precision: Precision, held: int) -> None:
    """Run the steps.

    Raises:
        RuntimeError, MemoryError: of torch, if the memory is not enough.
    """
    device, train = world.device, config.train
    task = build_task(config, data.scheme)
    in_channels = len(data.channels)
    model = task.build_network(
        in_channels, data.scheme.num_outputs, checkpoint_activations=train.checkpoint_activations
    )
    model = place_network(model, config, device)
    beside = torch.empty(held, dtype=torch.uint8, device=device) if device.type == "cuda" else None
    batch = task.build_batches(data, world)
    micro_steps = min(2, accumulation_steps(config, world.size))
    channels_last = uses_channels_last(train.channels_last, model, device.type)

    def micro_batches() -> Iterator[MicroBatch]:
        for micro in range(micro_steps):
            first = (micro * world.size + world.rank) * train.micro_batch_samples
            if config.cache.placement == "replicated":
                (image, *others), target = batch(0, range(first, first + train.micro_batch_samples))
            else:  # the samples of the first step may not be in memory
                with device:
                    (image, *others), target = task.example(in_channels)
                image.normal_()
            if channels_last:
                image = image.contiguous(memory_format=torch.channels_last_3d)
            yield MicroBatch((image, *others), target, 0)

    step = TrainStep(
        model.train(),
        task.build_loss(),
        build_optimizer(config.optim, task.parameter_groups(model)),
        precision,
        World(read_launch({}), device),
        accumulation_steps=micro_steps,
        clip_grad=train.clip_grad,
        cast_weights=(
            train.compile is False and chosen_implementation(config.model.implementation, device.type) == "fused"
        ),
        averages=open_averages(train, model),
    )
    for number in range(_STEPS):
        step(number, micro_batches(), config.optim.lr)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    del beside
