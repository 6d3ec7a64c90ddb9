"""Estimate of the memory of a training, without data and without a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fusionseg.config import RunConfig
from fusionseg.config.outside_part import outside_parts
from fusionseg.distributed.batch_arithmetic import accumulation_steps
from fusionseg.training.memory.simulated_step import simulate_step
from fusionseg.training.network import build_weightless_network
from fusionseg.training.precision import Precision
from fusionseg.training.tasks.task import Task

DRIVER_BYTES = {"cpu": 0, "cuda": 600_000_000}
"""Memory that no tensor uses, by the type of the device: on a GPU the context of CUDA with its loaded kernels, and the
workspaces of cuBLAS and cuDNN. A constant, not measured for each GPU."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Expected memory of each rank at the peak of a step, in bytes, beside the cache of the data.

    `weights`, `optimizer`, `batch`, `activations` and `backward` are the parts of `tensors`.
    """

    parameters: int
    """Number of parameters, not bytes."""
    weights: int
    """Parameters, their copies in 16 bits for the step, and buffers."""
    optimizer: int
    """States of the optimizer."""
    batch: int
    """Inputs and target of a micro-batch."""
    activations: int
    """Tensors that the forward pass and the loss of one micro-batch keep for the backward pass, and the output of the
    micro-batch before, if there is one."""
    backward: int
    """Gradients, and temporary tensors of the backward pass, as far as they are there at the peak."""
    gradients: int
    """Gradients of all weights that learn."""
    driver: int
    """A constant for the memory that no tensor uses, see `DRIVER_BYTES`."""

    @property
    def tensors(self) -> int:
        """Bytes of all tensors at the peak."""
        return self.weights + self.optimizer + self.batch + self.activations + self.backward

    @property
    def total(self) -> int:
        """Bytes of all tensors at the peak, and of the driver."""
        return self.tensors + self.driver


def estimate_memory(
    task: Task, config: RunConfig, in_channels: int, out_channels: int, *, precision: Precision, world_size: int = 1
) -> MemoryEstimate:
    """Estimate the memory of one rank, without the cache of the data.

    The real training step runs on the meta device, and the bytes of its tensors are counted. That takes as long for
    every patch: about a second for a U-Net and 3 to 6 s for a Swin network on an idle core, twice as long for a step
    that accumulates. A network or a loss from outside that cannot run there runs on the CPU instead, which takes the
    time and the memory of a step. The estimate does not know `train.compile`, which needs less memory.

    Args:
        task: the task of the run.
        config: the configuration of the run.
        in_channels: channels of the images.
        out_channels: outputs of the data set, see `LabelScheme.num_outputs`.
        precision: precision of the forward pass. Its `device_type` names the device: "cuda" needs no GPU here.
        world_size: number of ranks.
    """
    model = build_weightless_network(task, config, in_channels, out_channels)
    accumulation = accumulation_steps(config, world_size)
    try:
        step = simulate_step(task, config, model, in_channels, precision, accumulation)
    except Exception:
        if next(outside_parts(config), None) is None:
            raise
        # A network or a loss from outside may read values, which the meta device does not have.
        recompute = config.train.checkpoint_activations
        model = task.build_network(in_channels, out_channels, checkpoint_activations=recompute)
        step = simulate_step(task, config, model, in_channels, precision, accumulation)
    weights = _bytes(model, learning=False) + sum(buffer.nbytes for buffer in model.buffers()) + step.casts
    gradients = _bytes(model, learning=True)
    earlier = gradients if accumulation > 1 else 0
    return MemoryEstimate(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weights=weights,
        optimizer=round(config.optim.states_per_parameter() * gradients),
        batch=step.batch,
        activations=step.kept - step.batch - earlier,
        backward=step.peak - step.kept + earlier,
        gradients=gradients,
        driver=DRIVER_BYTES[precision.device_type],
    )


def _bytes(model: nn.Module, *, learning: bool) -> int:
    return sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad or not learning)
