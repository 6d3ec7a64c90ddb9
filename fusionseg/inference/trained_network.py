"""A trained network, rebuilt from its checkpoint alone."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fusionseg.config import RunConfig, validate
from fusionseg.config.outside_part import source_changes
from fusionseg.config.parts.task import TaskInfo
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.distributed.launch import Launch
from fusionseg.distributed.world import choose_device
from fusionseg.runs.archive.layout import is_archive
from fusionseg.runs.cases.split import Split
from fusionseg.runs.cases.split_file import NO_VALIDATION, validates_none
from fusionseg.runs.checkpoints import find_weights, networks_in, peek_config, read_checkpoint, used_weights
from fusionseg.runs.paths import BEST, LAST
from fusionseg.runs.run_config import recorded_task
from fusionseg.runs.trust.foreign_code import check_code
from fusionseg.training.network import place_network
from fusionseg.training.precision import Precision, choose_precision, has_bf16, set_kernels
from fusionseg.training.tasks.choice import build_task
from fusionseg.utils.errors import UserError
from fusionseg.utils.machine import available_cpus

log = logging.getLogger("fusionseg")


@dataclass(frozen=True)
class TrainedNetwork:
    """A network in evaluation mode on its device, with the configuration and the data that it was trained on."""

    path: Path
    """The checkpoint."""
    config: RunConfig
    model: nn.Module
    channels: tuple[str, ...]
    scheme: LabelScheme
    """The classes of the training data, and the outputs of the network."""
    step: int
    """Completed optimizer steps of the checkpoint."""
    precision: Precision
    """That of the options; without one, that of the training, or another one if the device lacks it."""
    split: Split | None
    """The cases that it was trained on; None if the checkpoint, of an earlier version, does not record them."""
    data_hash: str | None
    """The hash of the training and validation cases, which earlier versions recorded in place of the split."""

    @property
    def labels(self) -> dict[int, str]:
        """Names of the classes 0, 1, ..., the background included."""
        return self.scheme.labels


def inference_device(request: str, launch: Launch | None = None) -> torch.device:
    """Choose the device of a prediction. On the CPU, torch may use all CPUs of this job, divided by its processes.

    Args:
        request: "auto", "cuda" or "cpu".
        launch: of this process among others that predict other cases; None for a single process.
    """
    launch = launch or Launch()
    device = choose_device(request, torch.cuda.device_count(), launch)
    if device.type == "cpu":
        torch.set_num_threads(max(1, available_cpus() // launch.local_world_size))
    return device


def task_of(run: Path, which: str = "best") -> TaskInfo:
    """The task of a run, without loading its network.

    Args:
        run: the run folder, a checkpoint file or an archive.
        which: the checkpoint of a run folder, "best" or "last".

    Raises:
        UserError: there is no checkpoint, or the class of the task is not found or not allowed.
    """
    path = find_weights(run, which)
    return recorded_task(peek_config(path) or {}, path)


def load_all_trained(
    run: Path, device: torch.device, which: str = "best", *, masks: bool = False, precision: str | None = None
) -> list[TrainedNetwork]:
    """Rebuild the network of a run, or all networks of an archive.

    Args:
        run, device, which, masks, precision: see `load_trained`.

    Raises:
        UserError: see `load_trained`.
    """
    return [
        load_trained(run, device, which, masks=masks, precision=precision, network=network)
        for network in networks_in(find_weights(run, which))
    ]


def load_trained(
    run: Path,
    device: torch.device,
    which: str = "best",
    *,
    masks: bool = False,
    precision: str | None = None,
    network: int | None = None,
) -> TrainedNetwork:
    """Rebuild the network of a run from its checkpoint.

    Args:
        run: the run folder, a checkpoint file or an archive.
        device: the device of the network.
        which: the checkpoint of a run folder, "best" or "last".
        masks: refuse a network that gives no logits for each voxel.
        precision: "fp32", "bf16" or "fp16"; None is that of the training, or another one if the device lacks it.
        network: of an archive with several; None for the only one.

    Raises:
        UserError: there is no checkpoint; it is damaged, or belongs to another program; it names code of others that is
            not allowed; `masks` is True and it predicts no masks; or the device does not compute in `precision`.
    """
    path = find_weights(run, which)
    if which == "best" and run.is_dir() and path != run and path.name == LAST:
        why = NO_VALIDATION if validates_none(run) else "no validation yet"
        log.info("%s: has no %s (%s): %s is used", run, BEST, why, LAST)
    state = read_checkpoint(path, network)
    kinds: dict[str, Any] = {"model": dict, "config": dict, "labels": dict, "channels": (list, tuple), "step": int}
    if not all(isinstance(state.get(name), kind) for name, kind in kinds.items()):
        raise UserError(f"{path}: is no checkpoint of a fusionseg training")
    if not is_archive(path):
        check_code(state["config"], path)
    config = validate(state["config"], recorded=True)
    for warning in source_changes(state["config"], config, ["model", "data", "task"]):
        log.warning("%s: %s", path, warning)
    if masks and config.task_info.evaluation != "masks":
        raise UserError(_no_masks(path, run, config.task_info))
    split = Split.from_json(state["split"], str(path)) if "split" in state else None
    labels = {int(value): name for value, name in state["labels"].items()}
    scheme = LabelScheme.of_names(list(labels.values()))
    if split is not None and split.label_scheme is not None:
        scheme = split.scheme
    model = build_task(config, scheme).build_network(len(state["channels"]), scheme.num_outputs)
    try:
        model.load_state_dict(used_weights(state))
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n\t")[:2])
        raise UserError(f"{path}: its weights do not fit its own configuration ({reason})") from None
    set_kernels(config.train, device)
    return TrainedNetwork(
        path,
        config,
        place_network(model, config, device).eval(),
        tuple(state["channels"]),
        scheme,
        state["step"],
        _inference_precision(config.train.precision, precision, device),
        split,
        state.get("data"),
    )


def _inference_precision(trained: str, asked: str | None, device: torch.device) -> Precision:
    """Choose the precision of a prediction.

    Args:
        trained: `train.precision`. The device of the prediction may differ from that of the training, and may lack it.
        asked: that of the options; None for that of the training.
        device: the device of the prediction.

    Raises:
        UserError: the device lacks the precision that is asked for.
    """
    if asked is None:
        lacks = (trained == "fp16" and device.type == "cpu") or (trained == "bf16" and not has_bf16(device))
        return choose_precision("auto" if lacks else trained, device)
    if asked == "fp16" and device.type == "cpu":
        raise UserError("precision: fp16 needs a GPU, and the device is the CPU; choose fp32 or bf16")
    if asked == "bf16" and device.type == "cuda" and not has_bf16(device):
        raise UserError("precision: bf16 needs a GPU of compute capability 8.0 or later; choose fp32 or fp16")
    return choose_precision(asked, device)


def _no_masks(path: Path, run: Path, task: TaskInfo) -> str:
    if task.evaluation == "reconstruction":
        remedy = f"train with init_from={run}, and use that run"
    else:
        remedy = f"fusionseg evaluate {run} repeats its validation"
        remedy += ", and fusionseg predict writes its values" if task.gives_values else ""
    return f"{path}: is of a {task.name}, which predicts no masks: {remedy}"
