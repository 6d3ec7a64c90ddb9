"""Expected memory of a training, from the network on the meta device: nothing is computed and nothing allocated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusionseg.config import RunConfig
from fusionseg.losses import build_loss
from fusionseg.models import build_model

_OPTIMIZER_STATES = {"adamw": 2, "adam": 2, "sgd": 1, "novograd": 1}


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
        model = build_model(
            config.model,
            in_channels=in_channels,
            out_channels=out_channels,
            checkpoint_activations=config.train.checkpoint_activations,
        )
        image = torch.empty(config.train.micro_batch, in_channels, *config.data.patch)
    count = sum(parameter.numel() for parameter in model.parameters())
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    trainable = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    optimizer = _OPTIMIZER_STATES[config.optim.name] * trainable
    activations = _saved_bytes(model, image, config) // (2 if half else 1)
    return MemoryEstimate(count, weights, trainable, optimizer, activations)


def _saved_bytes(model: nn.Module, image: Tensor, config: RunConfig) -> int:
    """Bytes that autograd keeps of a forward pass, each tensor once and without the parameters."""
    known = {id(parameter) for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in known:
            kept[id(base)] = base  # holding it also keeps its id from being used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(image)
        label = torch.zeros(image.shape[0], 1, *image.shape[2:], dtype=torch.int64, device="meta")
        build_loss(config.loss)(logits, label)
    return sum(tensor.nbytes for tensor in kept.values())
