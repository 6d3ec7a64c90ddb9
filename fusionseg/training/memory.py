"""Expected memory of a training, from the network on the meta device: nothing is computed and nothing allocated."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fusionseg.config import RunConfig
from fusionseg.models.cost import saved_bytes
from fusionseg.training.network import build_loss, make_network


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each rank."""

    parameters: int
    """Number of parameters (not bytes)."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    """What the forward pass of one micro-batch keeps for the backward pass."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate_memory(config: RunConfig, in_channels: int, out_channels: int, *, half: bool) -> MemoryEstimate:
    """Expected memory of one rank, without the cache and the device's own overhead.

    Args:
        half: whether the forward pass computes in 16 bits; its activations then count half.
    """
    with torch.device("meta"):
        model = make_network(config, in_channels=in_channels, out_channels=out_channels)
        inputs, target = _example(config, in_channels)
    count = sum(parameter.numel() for parameter in model.parameters())
    weights = sum(tensor.nbytes for tensor in chain(model.parameters(), model.buffers()))  # each once
    trainable = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    optimizer = round(config.optim.states_per_parameter() * trainable)
    loss = build_loss(config)
    activations = saved_bytes(model, lambda: loss(model(*inputs), target)) // (2 if half else 1)
    return MemoryEstimate(count, weights, trainable, optimizer, activations)


def _example(config: RunConfig, in_channels: int) -> tuple[tuple[Tensor, ...], Any]:
    """A micro-batch in shape and type: what the network is called with, and the loss's target."""
    batch, patch = config.train.micro_batch, config.data.patch
    image = torch.empty(batch, in_channels, *patch)
    if config.pretrain is None:
        return (image,), torch.zeros(batch, 1, *patch, dtype=torch.int64)
    hidden = torch.zeros(batch, *config.pretrain.grid(patch), dtype=torch.bool)
    return (image, hidden), (image, hidden)
