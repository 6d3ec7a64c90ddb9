"""The network of a run: built, loaded with the weights of `init_from`, and wrapped for several ranks."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fusionseg.config import RunConfig, differences
from fusionseg.config.outside_part import OutsidePart, outside_parts
from fusionseg.data.formats.channel_names import channel_order
from fusionseg.distributed.gradient_allreduce import register_allreduce
from fusionseg.distributed.world import World
from fusionseg.models.implementation import set_implementation_
from fusionseg.models.placement import guard_cpu_convolutions_, set_memory_format_
from fusionseg.models.sharding.network import shard_network_
from fusionseg.models.sync_batch_norm import synchronise_batch_norm
from fusionseg.models.weights.loading import load_weights, state_of
from fusionseg.observability.ranges import annotate_modules
from fusionseg.runs.checkpoints import find_weights, read_start
from fusionseg.training.tasks.choice import build_task
from fusionseg.training.tasks.task import Task

log = logging.getLogger("fusionseg")
_PREPROCESSING = ("spacing", "orientation", "intensity")
"""Keys of `data` that say in which form a network sees images."""


def count_parameters(config: RunConfig, *, in_channels: int, out_channels: int) -> int:
    """Count the parameters of the network that a configuration trains; see `build_weightless_network`.

    Args:
        config: the configuration of the run.
        in_channels: channels of the images.
        out_channels: outputs of the data set, see `LabelScheme.num_outputs`.
    """
    plain = config.to_dict()
    if config.task is None:  # a task from outside may build its network from any section
        plain = {name: plain.get(name) for name in ("model", "pretrain", "finetune")}
    key = repr((plain, config.data.patch, in_channels, out_channels))
    if key not in _counts:
        model = build_weightless_network(build_task(config), config, in_channels, out_channels)
        _counts[key] = sum(parameter.numel() for parameter in model.parameters())
    return _counts[key]


_counts: dict[str, int] = {}
"""Results of `count_parameters` so far: most runs of a sweep have the same network."""


def build_weightless_network(task: Task, config: RunConfig, in_channels: int, out_channels: int) -> nn.Module:
    """Build the network of a run on the meta device: nothing is computed or allocated.

    A network from outside that reads values in its constructor cannot be built there, and is built on the CPU.

    Args:
        task: the task of the run.
        config: the configuration of the run.
        in_channels: channels of the images.
        out_channels: outputs of the data set, see `LabelScheme.num_outputs`.
    """
    checkpoint_activations = config.train.checkpoint_activations
    try:
        with torch.device("meta"):
            return task.build_network(in_channels, out_channels, checkpoint_activations=checkpoint_activations)
    except Exception:
        if next(outside_parts(config), None) is None:
            raise
        return task.build_network(in_channels, out_channels, checkpoint_activations=checkpoint_activations)


def build_network(
    task: Task, config: RunConfig, device: torch.device, *, in_channels: int, out_channels: int
) -> nn.Module:
    """Build the network of a run with initial weights that depend on the seed alone, not on the device.

    Args:
        task: the task of the run.
        config: the configuration of the run.
        device: device of the network.
        in_channels: channels of the images.
        out_channels: outputs of the data set, see `LabelScheme.num_outputs`.
    """
    torch.manual_seed(config.seed)  # the weights are drawn on the CPU, then moved
    model = task.build_network(in_channels, out_channels, checkpoint_activations=config.train.checkpoint_activations)
    count = sum(parameter.numel() for parameter in model.parameters())
    log.info("model: %s, %s parameters", config.model.name, f"{count:,}")
    return place_network(model, config, device)


def place_network(model: nn.Module, config: RunConfig, device: torch.device) -> nn.Module:
    """Move a network to a device, as the configuration wants it there, for training or for prediction.

    Args:
        model: the network; its weights may change their memory format in place, and its blocks their implementation.
        config: its `model.implementation` and `train.channels_last` are read.
        device: device of the network.
    """
    set_implementation_(model, config.model.implementation, device.type)
    set_memory_format_(model, config.train.channels_last, device.type)
    if device.type == "cpu":
        guard_cpu_convolutions_(model)
    return model.to(device)


def start_from(model: nn.Module, config: RunConfig, channels: Sequence[str]) -> None:
    """Load the weights of `init_from` into a network; do nothing if it is not set, or `finetune.from_scratch` is.

    Args:
        model: the network.
        config: the configuration of the run.
        channels: names of the image channels that the network reads.

    Raises:
        UserError: there are no such weights, or too few of them fit.
    """
    if config.start_weights is None:
        return
    path = find_weights(Path(config.start_weights))
    content = read_start(path)
    report = load_weights(
        model, state_of(content, path), encoder=config.model.encoder, min_share=config.init_min_share, source=str(path)
    )
    log.info("init_from %s: %s", path, report)
    if isinstance(content, Mapping):
        _compare_channels(path, content.get("channels"), channels)
        _compare_preprocessing(path, content.get("config"), config)


def _compare_channels(path: Path, trained: Any, channels: Sequence[str]) -> None:
    """Warn if the weights were trained on the same channels in another order."""
    if not isinstance(trained, list | tuple):
        return
    order = channel_order(channels, list(map(str, trained)))
    if order is not None and order != tuple(range(len(channels))):
        log.warning(
            "init_from %s: was trained on the channels %s, but this run reads %s: the weights of the first layer belong"
            " to the position of a channel, not to its name; use the same order of channels in both",
            path,
            ", ".join(map(str, trained)),
            ", ".join(channels),
        )


def _compare_preprocessing(path: Path, trained: Any, config: RunConfig) -> None:
    """Warn if the weights were trained on images of another spacing, orientation or normalisation."""
    data = trained.get("data") if isinstance(trained, Mapping) else None
    if not isinstance(data, Mapping):
        return
    before, now = ({key: each.get(key) for key in _PREPROCESSING} for each in (data, config.to_dict()["data"]))
    if changed := differences(_without_unset(before), _without_unset(now), "data."):
        log.warning(
            "init_from %s: was trained on images of another preprocessing (%s; that of the weights is first), and its"
            " features may not fit; use the same keys in both",
            path,
            "; ".join(changed),
        )


def _without_unset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out keys without a value: older configurations do not have them."""
    plain = {key: _without_unset(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    return {key: value for key, value in plain.items() if value not in (None, False)}


def distribute(
    model: nn.Module, config: RunConfig, world: World, accumulation_steps: int, units: Sequence[str] = ()
) -> nn.Module:
    """Prepare a network for the training step: synchronise its batch norm, compile it, name its parts for the
    profiler, wrap it by DDP, or divide its weights among the ranks.

    Args:
        model: the network, on its device.
        config: the configuration of the run.
        world: the ranks. A single rank has the whole network, without DDP.
        accumulation_steps: micro-steps of an optimizer step.
        units: modules whose weights are gathered on their own with `distributed.parallel: fsdp`.

    Raises:
        UserError: the weights cannot be divided.
    """
    if world.size > 1 and (count := synchronise_batch_norm(model, world.device)):
        log.info("batch norm: %d layers, each over the micro-batches of all %d ranks", count, world.size)
    if config.train.compile is not False:
        # Without dynamic shapes: else the validation's batch, of another size, would be compiled for any size.
        model.compile(mode=config.train.compile, dynamic=False)
    if config.profile.stages:
        annotate_modules(model)
    if world.size == 1:
        return model
    bf16 = config.distributed.gradients == "bf16"
    if config.distributed.parallel == "fsdp":
        shard_network_(model, units, world.device, bf16_gradients=bf16)
        log.info("fsdp: the network is divided among %d ranks, in %d units", world.size, 1 + len(units))
        return model
    with warnings.catch_warnings():
        # torch 2.13 recommends `forward_sync_buffers`, which earlier versions do not have.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        distributed = DistributedDataParallel(
            model,
            device_ids=[world.device.index] if world.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            # With accumulation, the graph of the synchronised micro-step differs from that of the others.
            static_graph=accumulation_steps == 1,
            # A network from outside may have parameters that its output does not depend on.
            find_unused_parameters=isinstance(config.model, OutsidePart) and accumulation_steps > 1,
            # The running statistics of batch norm are the same on all ranks, and all other buffers are constant.
            broadcast_buffers=False,
        )
    register_allreduce(
        distributed,
        world.device,
        bf16=bf16,
        ranges=(config.profile.steps is not None or config.profile.stages) and not config.train.cuda_graph,
    )
    return distributed
