"""The plan of a segmentation: from the fingerprint of a data set to a complete, commented configuration."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from fusionseg.config import RunConfig, validate
from fusionseg.config.data.dataset import DataConfig
from fusionseg.config.outside import is_outside
from fusionseg.config.registry import networks
from fusionseg.data.fingerprint.fingerprint import Fingerprint
from fusionseg.data.formats.dataset import Dataset
from fusionseg.planning.choices import Choice, by, commented_yaml, plain_values
from fusionseg.planning.cost import CostModel, global_batch
from fusionseg.planning.device import GB, PlannedDevice
from fusionseg.planning.fit import Fitted
from fusionseg.planning.folds import plan_split
from fusionseg.planning.modality import plan_intensity
from fusionseg.planning.network import PlannedNetwork
from fusionseg.planning.patch import CPU_WIDTH, GPU_WIDTH, patch_reason, plan_division
from fusionseg.planning.recipe import TrainingSize, optimizer_for, plan_augmentation, plan_training
from fusionseg.planning.volumes import PlannedVolumes, plan_volumes
from fusionseg.utils.errors import UserError, some_of
from fusionseg.utils.tables import counted

CACHE_SHARE = 0.25
"""Largest share of the memory of a GPU that the prepared cases take."""
RESIDUAL_ENCODER = "resenc_unet"


@dataclass(frozen=True)
class PlanRequest:
    """A request for a plan.

    Args:
        name: name of the run.
        root: the data set as it stands in the configuration.
        data: keys of the section `data` that are given with the command.
        device: the device.
        network: name of the network; None leaves the choice to the plan.
        command: the command line, for the comment at the top.
    """

    name: str
    root: str
    data: DataConfig
    device: PlannedDevice
    network: str | None
    command: Sequence[str]


@dataclass(frozen=True)
class ExperimentPlan:
    """A planned configuration.

    Args:
        header: paragraphs of the comment at the top.
        choices: the keys with their reasons, in the order of the file.
        config: the same, validated.
        warnings: what a person should look at.
        ranks: of the training, each on a GPU of its own.
    """

    header: tuple[str, ...]
    choices: tuple[Choice, ...]
    config: RunConfig
    warnings: tuple[str, ...]
    ranks: int = 1

    def to_yaml(self) -> str:
        """The configuration file. The same data and request give the same bytes."""
        return commented_yaml(self.header, self.choices)

    def summary(self) -> str:
        """The main choices in some lines, for the screen."""
        config = self.config
        lines = [
            self.header[0],
            f"network {config.model.name}, patch {by(config.data.patch)}, batch {config.train.global_batch}"
            f" ({config.train.micro_batch} at a time{f' on each of {self.ranks} GPUs' if self.ranks > 1 else ''}),"
            f" {config.train.steps} steps",
        ]
        return "\n".join([*lines, *(f"warning: {line}" for line in self.warnings)])


def plan_experiment(
    dataset: Dataset, fingerprint: Fingerprint, request: PlanRequest, remarks: Sequence[str] = ()
) -> ExperimentPlan:
    """Choose a configuration for a segmentation of a data set.

    Args:
        dataset: the data set.
        fingerprint: its measurements.
        request: device, network and given keys.
        remarks: further lines about the data for the comment at the top.

    Raises:
        UserError: there is no labelled case, the network does not fit, or a given key is wrong.
    """
    name = _network_name(request)
    if not fingerprint.labelled:
        raise UserError(
            f"{request.root}: has no labelled training case that can be read ({len(fingerprint.damaged)} are damaged,"
            f" {len(fingerprint.cases)} have no label), and a plan is for a segmentation; mend the faults that"
            " fusionseg check lists"
        )
    _check_axes(fingerprint, request.data)
    volumes = plan_volumes(fingerprint, request.data)
    broken = [case.name for case in fingerprint.damaged]
    split, size = plan_split(dataset, broken, request.data)
    cost, cache = _cost_model(dataset, fingerprint, volumes, request)
    cost, fitted = plan_division(name, volumes, cost, size.cases, request.data)
    batch = global_batch(fitted.micro_batch, request.device.ranks)
    size = TrainingSize(size.cases, size.validation_cases, batch)
    choices = [
        Choice("name", request.name),
        Choice("output", "runs"),
        Choice("seed", 0),
        Choice("data.root", request.root),
        *split,
        Choice("data.orientation", "RAS", "Axes from left to right, back to front, feet to head, in every case."),
        *volumes.choices,
        *plan_intensity(fingerprint, request.data),
        Choice("data.patch", list(fitted.network.patch), patch_reason(fitted, volumes, cost, request.data)),
        Choice("data.samples_per_volume", 1, "The samples of a step are of different cases, as in nnU-Net."),
        Choice("data.foreground", 0.33, "nnU-Net's share of patches that are centred on a class."),
        *([_broken(broken)] if broken else []),
        *plan_augmentation(dataset.scheme, is_gpu=request.device.is_gpu),
        cache,
        *_model_choices(fitted.network, request),
        *plan_training(cost, fitted, volumes, size),
        *([Choice("distributed.parallel", "fsdp", _DIVIDED)] if cost.parallel == "fsdp" else []),
    ]
    choices = _with_given(choices, request.data)
    warnings = _warnings(fitted, cost, broken, remarks)
    header = (*_header(fingerprint, volumes, request), *warnings)
    return ExperimentPlan(header, tuple(choices), validate(plain_values(choices)), warnings, request.device.ranks)


_DIVIDED = (
    "The network does not fit on one GPU. Its weights and gradients and the states of the optimizer are divided among"
    " the GPUs, which exchange weights too."
)


def planned_network(name: str | None, budget: str | None) -> str | None:
    """The network of a request; None leaves the choice to the plan.

    Args:
        name: of the network.
        budget: a preset of nnU-Net's residual-encoder U-Net.

    Raises:
        UserError: there is no network of this name, it is not built in, or the preset is for another one.
    """
    if name is None:
        return RESIDUAL_ENCODER if budget is not None else None
    if is_outside(name):
        raise UserError(
            f"--network: {name} is a part from outside, of which a plan knows no sizes; plan another network, and set"
            " model in the file"
        )
    networks.lookup(name, key="--network")
    if budget is not None and not name.startswith("resenc_"):
        raise UserError(f"--budget: is for {RESIDUAL_ENCODER}, and --network is {name}; give --memory instead")
    return name


def _network_name(request: PlanRequest) -> str:
    return request.network or (RESIDUAL_ENCODER if request.device.is_gpu else "unet")


def _check_axes(fingerprint: Fingerprint, given: DataConfig) -> None:
    """Check that the axes of the prepared volumes are those of the fingerprint: left-right, back-front, feet-head.

    Raises:
        UserError: `data.orientation` keeps the axes of files in which they have another order.
    """
    turned = [case for case in fingerprint.labelled if not re.fullmatch("[RL][AP][SI]", case.orientation)]
    if turned and not given.orientation:
        raise UserError(
            "data.orientation: null keeps the axes of the files, and a plan needs the order left-right, back-front,"
            f" feet-head ({some_of([case.name for case in turned])}: {turned[0].orientation}); leave data.orientation"
            " out, or set it to RAS"
        )


def _cost_model(
    dataset: Dataset, fingerprint: Fingerprint, volumes: PlannedVolumes, request: PlanRequest
) -> tuple[CostModel, Choice]:
    """The cost model, and the place of the prepared cases."""
    device, channels = request.device, len(fingerprint.channels)
    needed = sum(prod(shape) * (2 * channels + 1) for shape in volumes.shapes)
    size = f"{needed / GB:.3g} GB" if needed >= 0.1 * GB else f"{needed / 1e6:.3g} MB"
    found = f"The {len(volumes.shapes)} prepared cases take {size} in 16 bits"
    on_device = device.memory_gb is not None and needed <= CACHE_SHARE * device.memory_gb * GB
    if not device.is_gpu:
        choice = Choice("cache.device", "auto", f"{found}.")
    elif on_device:
        choice = Choice("cache.device", "auto", f"{found}, which the memory of the GPU has beside the training.")
    else:
        reason = f"{found}, too much for the GPU beside the training: they lie in host memory, patches are copied."
        choice = Choice("cache.device", "host", reason)

    def optimizer(name: str) -> dict[str, object]:
        return optimizer_for(name, is_gpu=device.is_gpu)

    return CostModel(device, dataset.scheme, channels, optimizer, needed if on_device else 0.0), choice


def _model_choices(network: PlannedNetwork, request: PlanRequest) -> list[Choice]:
    if request.network is not None:
        reason = "The network of the request."
    elif request.device.is_gpu:
        reason = "nnU-Net's residual-encoder U-Net (Isensee et al., 2024)."
    else:
        reason = (
            f"A U-Net of {CPU_WIDTH} instead of nnU-Net's {GPU_WIDTH} channels, a quarter of the multiply-adds: on a"
            " CPU more steps of a small network give a better result in the same time."
        )
    parts = [Choice("model.name", network.values["name"], f"{reason} {network.reason}")]
    for key, value in network.values.items():
        text = "Heads at lower resolutions guide the training." if key == "deep_supervision" and value else ""
        parts += [] if key == "name" else [Choice(f"model.{key}", value, text)]
    return parts


def _broken(names: Sequence[str]) -> Choice:
    reason = f"Without it the training would not start: {some_of(names)} cannot be read (fusionseg check says why)."
    return Choice("data.skip_broken", True, reason)


def _with_given(choices: Sequence[Choice], given: DataConfig) -> list[Choice]:
    """Put the keys that are given with the command in the place of the plan's, or at the end of the section."""
    values = given.model_dump(mode="json", include=given.model_fields_set - {"root"})
    stated = {f"data.{key}": value for key, value in values.items()}
    own = {choice.key for choice in choices}
    replaced = [
        Choice(choice.key, stated[choice.key], choice.reason if "Given" in choice.reason else "Given with the command.")
        if choice.key in stated
        else choice
        for choice in choices
    ]
    end = max(index for index, choice in enumerate(replaced) if choice.key.startswith("data."))
    further = [Choice(key, value, "Given with the command.") for key, value in stated.items() if key not in own]
    return [*replaced[: end + 1], *further, *replaced[end + 1 :]]


def _warnings(fitted: Fitted, cost: CostModel, broken: Sequence[str], remarks: Sequence[str]) -> tuple[str, ...]:
    lines = []
    if broken:
        counted = "1 case cannot be read and is" if len(broken) == 1 else f"{len(broken)} cases cannot be read and are"
        lines.append(f"{counted} left out: {some_of(broken)}. The page about the data has the errors.")
    if fitted.load > 1 and cost.device.is_gpu:
        lines.append("The given patch needs more memory than the GPU has: make data.patch smaller.")
    elif fitted.load > 1:
        seconds = cost.step_s(fitted.network, global_batch(fitted.micro_batch, cost.device.ranks))
        lines.append(f"A step takes roughly {seconds:.2g} s on this CPU: plan a smaller --network, or train on a GPU.")
    return (*lines, *remarks)


def _header(fingerprint: Fingerprint, volumes: PlannedVolumes, request: PlanRequest) -> list[str]:
    outputs = "regions" if fingerprint.is_regions else "classes"
    return [
        f"Plan for {fingerprint.dataset}: {by(volumes.median_shape)} voxels (median) of"
        f" {by([f'{size:g}' for size in volumes.spacing])} mm, {counted(len(volumes.cases), 'labelled case')},"
        f" channels {', '.join(fingerprint.channels)}, {outputs} {some_of(fingerprint.outputs)}.",
        f"Device: {request.device.basis}. The plan was made by",
        f"  {shlex.join(request.command)}",
        "The comment above a key has the reason for its value. docs/plan.md explains the rules; nnU-Net's are those of"
        " Isensee et al., Nature Methods 2021, and Isensee et al., 2024 (arXiv:2404.09556). Change what you know"
        " better.",
    ]


def run_name(path: Path) -> str:
    """The name of the run of a configuration file: that of the file, without letters that a name cannot have.

    Args:
        path: the file.
    """
    return re.sub(r"[^A-Za-z0-9._-]", "_", path.stem).lstrip("._-") or "run"
