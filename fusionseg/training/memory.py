"""Estimate of a training's memory, from the network on the meta device, where nothing is computed or allocated.

Parts from outside that the meta device cannot run are tried on the CPU instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from torch import nn

from fusionseg.config import RunConfig
from fusionseg.config.outside_part import outside_parts
from fusionseg.models.cost import saved_bytes
from fusionseg.training.network import build_weightless_network
from fusionseg.training.tasks.task import Task


@dataclass(frozen=True)
class MemoryEstimate:
    """Expected memory of each rank, in bytes."""

    parameters: int
    """Number of parameters, not bytes."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Tensors that the forward pass of one micro-batch keeps for the backward pass."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate_memory(
    task: Task, config: RunConfig, in_channels: int, out_channels: int, *, half: bool
) -> MemoryEstimate:
    """Estimate the memory of one rank, without the data cache and without the memory that the GPU's driver takes.

    Args:
        task: the task of the run.
        config: the configuration of the run.
        in_channels: channels of the images.
        out_channels: outputs of the data set, see `LabelScheme.num_outputs`.
        half: whether the forward pass computes in 16 bits; the activations then take half the memory.
    """
    model = build_weightless_network(task, config, in_channels, out_channels)
    count = sum(parameter.numel() for parameter in model.parameters())
    weights = sum(tensor.nbytes for tensor in chain(model.parameters(), model.buffers()))
    trainable = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    optimizer = round(config.optim.states_per_parameter() * trainable)
    try:
        activations = _activation_bytes(task, model, in_channels)
    except Exception:
        if next(outside_parts(config), None) is None:
            raise
        # A network or a loss from outside may read values, which the meta device does not have.
        recompute = config.train.checkpoint_activations
        placed = task.build_network(in_channels, out_channels, checkpoint_activations=recompute)
        activations = _activation_bytes(task, placed, in_channels)
    return MemoryEstimate(count, weights, trainable, optimizer, activations // (2 if half else 1))


def _activation_bytes(task: Task, model: nn.Module, in_channels: int) -> int:
    """Bytes of 32-bit activations that the forward pass and the loss of one micro-batch keep."""
    with next(model.parameters()).device:
        inputs, target = task.example(in_channels)
    loss = task.build_loss()
    return saved_bytes(model, lambda: loss(model(*inputs), target))
