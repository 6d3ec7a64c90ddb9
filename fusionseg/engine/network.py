"""The network of a run: built, given its first weights, wrapped for its ranks."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from fusionseg.config import RunConfig
from fusionseg.engine.checkpoint import find_weights
from fusionseg.engine.distributed import World
from fusionseg.models import build_model
from fusionseg.models.weights import load_weights, read_state

log = logging.getLogger("fusionseg")


def build_network(config: RunConfig, device: torch.device, *, in_channels: int, out_channels: int) -> nn.Module:
    """The configured network with the seed's initial weights, the same on every device."""
    torch.manual_seed(config.seed)  # drawn on the CPU, then moved
    model = build_model(
        config.model,
        in_channels=in_channels,
        out_channels=out_channels,
        checkpoint_activations=config.train.checkpoint_activations,
    )
    if config.train.channels_last:
        model = model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    count = sum(parameter.numel() for parameter in model.parameters())
    log.info("model: %s, %s parameters", config.model.name, f"{count:,}")
    return model.to(device)


def start_from(model: nn.Module, config: RunConfig) -> None:
    """Take the weights that `init_from` names, if it names any."""
    if config.init_from is None:
        return
    path = find_weights(Path(config.init_from))
    report = load_weights(model, read_state(path), min_share=config.init_min_share, source=str(path))
    log.info("init_from %s: %s", path, report)


def distribute(model: nn.Module, config: RunConfig, world: World, accumulate: int) -> nn.Module:
    """The network as the training step calls it: compiled if so configured, its gradients averaged over the ranks."""
    if config.train.compile:
        model.compile()
    if world.size == 1:
        return model
    with warnings.catch_warnings():
        # torch 2.13 wants `forward_sync_buffers`, which the versions before it do not have
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        return DistributedDataParallel(
            model,
            device_ids=[world.device.index] if world.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            # with accumulation, the graph of a synchronised micro-step is not that of the others
            static_graph=accumulate == 1,
            # only batch norm's running statistics change; everything else that is a buffer is a constant
            broadcast_buffers=any(isinstance(module, _BatchNorm) for module in model.modules()),
        )
