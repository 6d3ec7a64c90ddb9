"""A training step without data, for counts of memory and operations: the real one, on tensors of the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fusionseg.config import RunConfig
from fusionseg.distributed.launch import read_launch
from fusionseg.distributed.world import World
from fusionseg.models.device_kind import meta_stands_for
from fusionseg.models.implementation import chosen_implementation, set_implementation_
from fusionseg.models.placement import guard_cpu_convolutions_, set_memory_format_
from fusionseg.observability.ranges import silence
from fusionseg.training.memory.live_tensors import LiveTensors
from fusionseg.training.memory.meta_autocast import MetaAutocast
from fusionseg.training.memory.workspace import cpu_workspace
from fusionseg.training.micro_batches import MicroBatch
from fusionseg.training.numerics.weight_averages import WeightAverages
from fusionseg.training.precision import Precision
from fusionseg.training.step import TrainStep
from fusionseg.training.tasks.choice import build_task
from fusionseg.training.tasks.task import Task


@dataclass(frozen=True)
class StepMemory:
    """Bytes of the tensors that a step makes; weights and states of the optimizer are older than the step."""

    casts: int
    """Copies of the weights in 16 bits. They are older than the step, and in none of the other numbers."""
    batch: int
    """Inputs and target of a micro-batch."""
    kept: int
    """All that is alive when the forward pass and the loss of the last micro-batch have ended: the batch, the tensors
    that the backward pass needs, and the gradients of earlier micro-batches."""
    peak: int
    """Highest number of bytes at the same time."""


def simulate_step(
    task: Task,
    config: RunConfig,
    model: nn.Module,
    in_channels: int,
    precision: Precision,
    accumulation_steps: int,
    *,
    cast_weights: bool = True,
    averages: WeightAverages | None = None,
) -> StepMemory:
    """Run a step, and count the bytes of its tensors.

    Args:
        task: the task of the run.
        config: the configuration of the run.
        model: the network, on the meta device or, if it cannot run there, on the CPU, where the step is computed.
        in_channels: channels of the images.
        precision: precision of the forward pass, and the type of the device that the memory is counted for.
        accumulation_steps: micro-batches of a step on each rank. The second needs as much memory as all that follow.
        cast_weights: as for `TrainStep`.
        averages: as for `TrainStep`, of the same network.
    """
    batch: list[int] = []
    kept: list[int] = []
    live = LiveTensors(cpu_workspace) if precision.device_type == "cpu" else LiveTensors()

    step = run_weightless_step(
        task,
        config,
        model,
        in_channels,
        precision,
        micro_steps=min(2, accumulation_steps),
        mode=live,
        cast_weights=cast_weights,
        averages=averages,
        before_batch=lambda: live.live,
        after_batch=lambda begun: batch.append(live.live - begun),
        after_loss=lambda: kept.append(live.live),
    )
    casts = 0 if step.casts is None else step.casts.nbytes
    return StepMemory(casts, batch[0], kept[-1], live.peak)


def run_weightless_step(
    task: Task,
    config: RunConfig,
    model: nn.Module,
    in_channels: int,
    precision: Precision,
    *,
    micro_steps: int,
    mode: TorchDispatchMode,
    cast_weights: bool = True,
    averages: WeightAverages | None = None,
    before_batch: Callable[[], int] = lambda: 0,
    after_batch: Callable[[int], object] = lambda begun: None,
    after_loss: Callable[[], object] = lambda: None,
) -> TrainStep:
    """Run a step on a network on the meta device, and return it.

    Args:
        task: the task of the run.
        config: the configuration of the run.
        model: as for `simulate_step`.
        in_channels: channels of the images.
        precision: precision of the forward pass, and the type of the device that the meta device stands for.
        micro_steps: micro-batches of the step.
        mode: sees each operator of the step.
        cast_weights: as for `TrainStep`.
        averages: as for `TrainStep`, of the same network.
        before_batch: called before a micro-batch is made.
        after_batch: called after it, with the value of `before_batch`.
        after_loss: called after the loss of each micro-batch.
    """
    device = next(model.parameters()).device
    set_implementation_(model, config.model.implementation, precision.device_type)
    channels_last = set_memory_format_(model, config.train.channels_last, precision.device_type)
    if precision.device_type == "cpu":
        guard_cpu_convolutions_(model)
    loss = task.build_loss()

    def counted_loss(output: Any, target: Any) -> Tensor:
        value = loss(output, target)
        after_loss()
        return value

    def micro_batches() -> Iterator[MicroBatch]:
        for _ in range(micro_steps):
            begun = before_batch()
            with device:
                (image, *others), target = task.example(in_channels)
            if channels_last:
                image = image.contiguous(memory_format=torch.channels_last_3d)
            after_batch(begun)
            yield MicroBatch((image, *others), target, 0)

    with ExitStack() as stack:
        stack.enter_context(silence())  # this step is not one of the run
        stack.enter_context(_standing_for(precision, device))
        step = TrainStep(
            model.train(),
            counted_loss,
            _NoUpdate(task.parameter_groups(model)),
            _stand_in(precision),
            World(read_launch({}), device),
            accumulation_steps=micro_steps,
            clip_grad=config.train.clip_grad,
            cast_weights=cast_weights
            and chosen_implementation(config.model.implementation, precision.device_type) == "fused",
            averages=averages,
        )
        stack.enter_context(mode)
        step(0, micro_batches(), 0.0)
    return step


def simulate_validation(task: Task, config: RunConfig, model: nn.Module, in_channels: int, precision: Precision) -> int:
    """Count the bytes of the tensors of a forward pass of a validation, at its peak.

    The logits of a whole volume do not count. They are gathered on the host where the device has no memory for them.

    Args:
        task: the task of the run.
        config: the configuration of the run.
        model: as for `simulate_step`.
        in_channels: channels of the images.
        precision: as for `simulate_step`.
    """
    if task.info.evaluation == "masks":
        train = config.train.model_copy(update={"micro_batch": config.validation.window_batch})
        task = build_task(config.model_copy(update={"train": train}), task.scheme)
    device = next(model.parameters()).device
    live = LiveTensors()
    with _standing_for(precision, device), torch.no_grad(), live:
        with device:
            inputs = task.example(in_channels)[0]
        with _stand_in(precision).autocast():
            model.eval()(*inputs)
    return live.peak


class _NoUpdate(torch.optim.Optimizer):
    """An optimizer that updates nothing and takes no memory for it, as fused kernels do."""

    _step_supports_amp_scaling = True

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    def step(self, closure: Any = None) -> None: ...  # type: ignore[override]


def _stand_in(precision: Precision) -> Precision:
    """The precision that stands for another: fp16 takes the memory of bf16, and CPUs lack some of its kernels."""
    return Precision("bf16" if precision.name in ("bf16", "fp16") else "fp32", precision.reason, "cpu")


@contextmanager
def _standing_for(precision: Precision, device: torch.device) -> Iterator[None]:
    """Let the meta device stand for the device of a precision within the context; leave another device as it is."""
    if device.type != "meta":
        yield
        return
    with meta_stands_for(precision.device_type), MetaAutocast(precision.device_type):
        yield
