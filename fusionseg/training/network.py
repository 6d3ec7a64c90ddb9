"""The network of a run: built, given its first weights, wrapped for its ranks."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fusionseg.config import RunConfig
from fusionseg.config.outside_part import OutsidePart
from fusionseg.data.formats.channel_names import channel_order
from fusionseg.distributed.gradient_allreduce import annotate_allreduce
from fusionseg.distributed.world import World
from fusionseg.models import build_model
from fusionseg.models.placement import channels_last_, guard_cpu_convolutions_
from fusionseg.models.sync_batch_norm import synchronise_batch_norm
from fusionseg.models.weights.loading import load_weights, read_file, read_state
from fusionseg.observability.ranges import annotate_modules
from fusionseg.runs.checkpoints import find_weights
from fusionseg.training.fine_tuning import freeze_encoder
from fusionseg.training.step import Loss

log = logging.getLogger("fusionseg")


def make_network(config: RunConfig, *, in_channels: int, out_channels: int) -> nn.Module:
    """The network that a configuration trains, on the current default device."""
    checkpoint_activations = config.train.checkpoint_activations
    if config.pretrain is not None:
        from fusionseg.models.masked import build_masked

        return build_masked(
            config.model,
            config.pretrain,
            in_channels=in_channels,
            patch=config.data.patch,
            checkpoint_activations=checkpoint_activations,
        )
    model = build_model(
        config.model,
        in_channels=in_channels,
        out_channels=out_channels,
        patch=config.data.patch,
        checkpoint_activations=checkpoint_activations,
    )
    freeze_encoder(model, config)
    return model


def make_weightless_network(config: RunConfig, *, in_channels: int, out_channels: int) -> nn.Module:
    """The network that a configuration trains, on the meta device: nothing is computed and nothing allocated.

    A network from outside that cannot be made there, because it reads values in its constructor, is made on the CPU.
    """
    try:
        with torch.device("meta"):
            return make_network(config, in_channels=in_channels, out_channels=out_channels)
    except Exception:
        if not isinstance(config.model, OutsidePart):
            raise
        return make_network(config, in_channels=in_channels, out_channels=out_channels)


def count_parameters(config: RunConfig, *, in_channels: int, out_channels: int) -> int:
    """Number of parameters of the network that a configuration trains."""
    parts = (config.model, config.pretrain, config.data.patch, config.finetune.whole_run, in_channels, out_channels)
    key = repr(parts)
    if key not in _parameters:
        model = make_weightless_network(config, in_channels=in_channels, out_channels=out_channels)
        _parameters[key] = sum(parameter.numel() for parameter in model.parameters())
    return _parameters[key]


_parameters: dict[str, int] = {}
"""By what they depend on: the runs of a sweep share few networks."""


def build_loss(config: RunConfig) -> Loss:
    """The loss that a configuration trains by: of the network's output and the task's target."""
    if config.pretrain is not None:
        from fusionseg.losses.reconstruction import ReconstructionLoss

        return ReconstructionLoss(config.pretrain.loss, data_range(config), intensity_limits(config))
    from fusionseg.losses import segmentation as losses

    return losses.build_loss(config.loss)


def data_range(config: RunConfig) -> float:
    """The range of the prepared intensities, for SSIM and PSNR."""
    if config.pretrain is not None and config.pretrain.data_range is not None:
        return config.pretrain.data_range
    return 1.0 if config.data.intensity.mode == "window" else 6.0


def intensity_limits(config: RunConfig) -> tuple[float, float] | None:
    """Lowest and highest intensity of all training samples, where the configuration says: in a window."""
    augment = config.augment
    fixed = augment.shift_intensity is None and augment.scale_intensity is None and augment.noise is None
    modes = {config.data.intensity.mode, *(source.intensity.mode for source in config.data.also)}
    return (0.0, 1.0) if fixed and modes == {"window"} else None


def build_network(config: RunConfig, device: torch.device, *, in_channels: int, out_channels: int) -> nn.Module:
    """The configured network with the seed's initial weights, the same on every device."""
    torch.manual_seed(config.seed)  # drawn on the CPU, then moved
    model = make_network(config, in_channels=in_channels, out_channels=out_channels)
    count = sum(parameter.numel() for parameter in model.parameters())
    log.info("model: %s, %s parameters", config.model.name, f"{count:,}")
    return place_network(model, config, device)


def place_network(model: nn.Module, config: RunConfig, device: torch.device) -> nn.Module:
    """Move a network to its device, in the configured layout, for training or for prediction."""
    if config.train.channels_last:
        channels_last_(model)
    if device.type == "cpu":
        guard_cpu_convolutions_(model)
    return model.to(device)


def start_from(model: nn.Module, config: RunConfig, channels: Sequence[str]) -> None:
    """Take the weights that `init_from` names, if it names any.

    Args:
        channels: names of the channels that the model reads.
    """
    if config.init_from is None:
        return
    path = find_weights(Path(config.init_from))
    report = load_weights(
        model, read_state(path), encoder=config.model.encoder, min_share=config.init_min_share, source=str(path)
    )
    log.info("init_from %s: %s", path, report)
    _compare_channels(path, channels)


def _compare_channels(path: Path, channels: Sequence[str]) -> None:
    """Warn where weights of the same channels in another order were loaded: the first layer knows them by place."""
    content = read_file(path)
    trained = content.get("channels") if isinstance(content, Mapping) else None
    if not isinstance(trained, list | tuple):
        return
    order = channel_order(channels, list(map(str, trained)))
    if order is not None and order != tuple(range(len(channels))):
        log.warning(
            "init_from %s: was trained on the channels %s, and this run reads %s: the weights of the first layer go by"
            " place, not by name; bring the channels into one order",
            path,
            ", ".join(map(str, trained)),
            ", ".join(channels),
        )


def distribute(model: nn.Module, config: RunConfig, world: World, accumulation_steps: int) -> nn.Module:
    """The network as the training step calls it: compiled if so configured, its gradients averaged over the ranks."""
    if world.size > 1 and (count := synchronise_batch_norm(model, world.device)):
        log.info("batch norm: %d layers, each over the micro-batches of all %d ranks", count, world.size)
    if config.train.compile:
        model.compile()
    if config.profile.stages:
        annotate_modules(model)
    if world.size == 1:
        return model
    with warnings.catch_warnings():
        # torch 2.13 wants `forward_sync_buffers`, which the versions before it do not have
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        distributed = DistributedDataParallel(
            model,
            device_ids=[world.device.index] if world.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            # with accumulation, the graph of a synchronised micro-step is not that of the others
            static_graph=accumulation_steps == 1,
            # A network from outside may have parameters that its output does not depend on.
            find_unused_parameters=isinstance(config.model, OutsidePart) and accumulation_steps > 1,
            # Batch norm's running statistics are the same on all ranks; all else that is a buffer is a constant.
            broadcast_buffers=False,
        )
    annotate_allreduce(distributed, world.device)
    return distributed
