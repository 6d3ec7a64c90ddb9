"""Expected memory of a training, from the network on the meta device: nothing is computed and nothing allocated."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from fusionseg.config import RunConfig
from fusionseg.config.outside_part import outside_parts
from fusionseg.models.cost import saved_bytes
from fusionseg.training.network import build_loss, make_network, make_weightless_network


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
    model = make_weightless_network(config, in_channels=in_channels, out_channels=out_channels)
    count = sum(parameter.numel() for parameter in model.parameters())
    weights = sum(tensor.nbytes for tensor in chain(model.parameters(), model.buffers()))  # each once
    trainable = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    optimizer = round(config.optim.states_per_parameter() * trainable)
    try:
        activations = _activation_bytes(config, model, in_channels)
    except Exception:
        if next(outside_parts(config), None) is None:
            raise
        # A network or a loss from outside may ask for values, which the meta device does not have.
        activations = _activation_bytes(
            config, make_network(config, in_channels=in_channels, out_channels=out_channels), in_channels
        )
    return MemoryEstimate(count, weights, trainable, optimizer, activations // (2 if half else 1))


def _activation_bytes(config: RunConfig, model: nn.Module, in_channels: int) -> int:
    """Bytes of 32-bit activations that the forward pass and the loss of one micro-batch keep."""
    with next(model.parameters()).device:
        inputs, target = _example(config, in_channels)
    loss = build_loss(config)
    return saved_bytes(model, lambda: loss(model(*inputs), target))


def _example(config: RunConfig, in_channels: int) -> tuple[tuple[Tensor, ...], Any]:
    """A micro-batch in shape and type: what the network is called with, and the loss's target."""
    batch, patch = config.train.micro_batch, config.data.patch
    image = torch.empty(batch, in_channels, *patch)
    if config.pretrain is None:
        return (image,), torch.zeros(batch, 1, *patch, dtype=torch.int64)
    hidden = torch.zeros(batch, *config.pretrain.grid(patch), dtype=torch.bool)
    return (image, hidden), (image, hidden)
