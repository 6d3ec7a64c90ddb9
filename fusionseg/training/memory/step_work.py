"""Work of a training step: its operations, and the least time that they take on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from fusionseg.config import RunConfig
from fusionseg.distributed.device_speed import QuickRates
from fusionseg.models.operator_costs import bytes_moved, least_s, operations
from fusionseg.training.memory.simulated_step import run_weightless_step
from fusionseg.training.network import build_weightless_network
from fusionseg.training.precision import Precision
from fusionseg.training.tasks.task import Task
from fusionseg.utils.errors import UserError


@dataclass(frozen=True)
class StepWork:
    """Work of forward pass, loss, backward pass and clipping of a step on one rank. Activations that are computed again
    do not count, and neither do the data and the update of the weights."""

    flops: float
    """Operations of convolutions, matrix products and attention; a multiply-add counts as two."""
    bound_s: float
    """Least time on the device: for each operator the longer one of its operations and of its memory traffic, each at
    the measured rate of the device (Williams et al., "Roofline", 2009)."""


def count_step_work(
    task: Task,
    config: RunConfig,
    *,
    in_channels: int,
    out_channels: int,
    precision: Precision,
    accumulation_steps: int,
    rates: QuickRates,
) -> StepWork:
    """Count the work of a step on the meta device, where nothing is computed.

    Args:
        task: the task of the run.
        config: the configuration of the run.
        in_channels: channels of the images.
        out_channels: outputs of the data set, see `LabelScheme.num_outputs`.
        precision: precision of the forward pass.
        accumulation_steps: micro-batches of a step on each rank.
        rates: of the device.

    Raises:
        UserError: the network is one from outside that the meta device cannot build.
    """
    train = config.train.model_copy(update={"checkpoint_activations": False})
    config = config.model_copy(update={"train": train})
    model = build_weightless_network(task, config, in_channels, out_channels)
    if next(model.parameters()).device.type != "meta":
        raise UserError("model: the network reads values in its constructor, and cannot be counted")
    counter = _Counter(rates)
    marks: list[StepWork] = []
    run_weightless_step(
        task,
        config,
        model,
        in_channels,
        precision,
        micro_steps=min(2, accumulation_steps),
        mode=counter,
        after_batch=lambda begun: marks.append(counter.work),
    )
    work = counter.work
    # A further micro-batch counts as the first one does, without the addition of its gradients.
    more = accumulation_steps - len(marks)
    if more:
        first, second = marks
        work = StepWork(
            work.flops + more * (second.flops - first.flops), work.bound_s + more * (second.bound_s - first.bound_s)
        )
    return work


class _Counter(TorchDispatchMode):
    """Adds up the work of the operators that run while it is entered."""

    def __init__(self, rates: QuickRates) -> None:
        super().__init__()
        self.rates = rates
        self.work = StepWork(0.0, 0.0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if moved := bytes_moved(func, args, kwargs, result):
            flops = operations(func, args, kwargs, result)
            bound_s = least_s(flops, moved, self.rates.flops_per_s, self.rates.bytes_per_s)
            self.work = StepWork(self.work.flops + flops, self.work.bound_s + bound_s)
        return result
