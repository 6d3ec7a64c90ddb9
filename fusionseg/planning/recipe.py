"""The recipe of a training: optimizer, schedule, steps, batch, augmentation and intervals."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from fusionseg.data.labels.mirroring import side_hint, side_pairs
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.planning.choices import Choice
from fusionseg.planning.cost import BACKWARD, MIN_BATCH, CostModel, least_micro_batch, windows
from fusionseg.planning.fit import Fitted
from fusionseg.planning.volumes import PlannedVolumes
from fusionseg.utils.tables import counted

BATCH_SHARE = 0.05
"""nnU-Net's largest batch has this share of the voxels of the training cases."""
NNUNET_STEPS = 1000 * 250
TRANSFORMER_STEPS = 50_000
CPU_PASSES, CPU_STEPS = 18, (1000, 20_000)
"""Times that a training on a CPU sees each voxel, and its fewest and most steps."""
VALIDATION_SHARE = 0.05
"""Largest share of the time that validations take."""
EPOCH = 250
"""Steps of an epoch of nnU-Net, which validates after each, on patches."""
VOLUME_STEPS = 1
"""Steps that a GPU could train in the time that a validation takes for a volume beside its windows: copies, scores.
Assumed, not measured. On a CPU it is little beside a step."""


@dataclass(frozen=True)
class TrainingSize:
    """Numbers that the recipe depends on.

    Args:
        cases: number of training cases.
        validation_cases: number of validation cases.
        global_batch: samples of a step.
    """

    cases: int
    validation_cases: int
    global_batch: int


def optimizer_for(name: str, *, is_gpu: bool) -> dict[str, Any]:
    """The section `optim` for a network.

    Args:
        name: of the network.
        is_gpu: False for a short training on a CPU.
    """
    if not is_gpu:
        return {"name": "adamw", "lr": 3e-3 if is_convolutional(name) else 1e-3, "weight_decay": 1e-2}
    if is_convolutional(name):
        return {"name": "sgd", "lr": 1e-2, "weight_decay": 3e-5, "momentum": 0.99}
    return {"name": "adamw", "lr": 1e-4, "weight_decay": 1e-5}


def is_convolutional(name: str) -> bool:
    """True for the U-Nets that nnU-Net's optimizer suits."""
    return name.startswith(("unet", "resunet", "attention_", "nnunet_", "resenc_", "monai_unet")) and name != "unetr"


def largest_batch(volumes: PlannedVolumes, cases: int, patch: tuple[int, int, int]) -> int:
    """nnU-Net's limit of the batch: 5 % of the voxels of the training cases, at least 2.

    Args:
        volumes: the prepared volumes.
        cases: number of training cases.
        patch: X, Y, Z.
    """
    return max(MIN_BATCH, round(BATCH_SHARE * cases * prod(volumes.median_shape) / prod(patch)))


def plan_augmentation(scheme: LabelScheme, *, is_gpu: bool) -> list[Choice]:
    """Choose the augmentation, and the flips that the names of the labels allow.

    Args:
        scheme: the labels of the data set.
        is_gpu: False for a short training on a CPU.
    """
    preset = "nnunet" if is_gpu else "light"
    reason = (
        "nnU-Net's augmentation."
        if is_gpu
        else "The changes of nnU-Net's augmentation that cost little on a CPU, with half of their ranges: in a short"
        " training strong changes cost more than they bring."
    )
    choices = [Choice("augment.preset", preset, reason)]
    if not side_hint((), scheme):
        return choices
    pairs = side_pairs(scheme)
    if pairs and not side_hint(pairs, scheme):
        text = "The labels have sides: a flip of left and right exchanges the labels of each pair."
        return [*choices, Choice("augment.mirror_pairs", [list(pair) for pair in pairs], text)]
    text = "Some labels have a side without a partner that a flip could exchange: left and right are not flipped."
    return [*choices, Choice("augment.flip", {"prob": 0.5, "axes": ["y", "z"]}, text)]


def plan_training(cost: CostModel, fitted: Fitted, volumes: PlannedVolumes, size: TrainingSize) -> list[Choice]:
    """Choose loss, optimizer, schedule, steps and the intervals of validations and checkpoints.

    Args:
        cost: of the network.
        fitted: network, patch and micro-batch.
        volumes: the prepared volumes.
        size: numbers of cases and samples.
    """
    name, is_gpu = fitted.network.values["name"], cost.device.is_gpu
    steps, steps_reason = _steps(cost, fitted, volumes, size)
    optimizer = optimizer_for(name, is_gpu=is_gpu)
    schedule, optimizer_reason = _schedule(name, is_gpu=is_gpu)
    every, validation_reason = _validation(fitted, volumes, size, steps, is_gpu=is_gpu)
    accumulation = size.global_batch // (fitted.micro_batch * cost.device.ranks)
    batch_reason = (
        f"Samples of one forward pass; {accumulation} of them are accumulated for a step, because two do not fit with a"
        " useful patch."
        if accumulation > 1
        else "All samples of a step in one forward pass."
        if cost.device.ranks == 1
        else f"Samples of one forward pass on each of the {cost.device.ranks} GPUs."
    )
    return [
        Choice("loss.name", "dice_ce", "Dice and cross-entropy, as in nnU-Net."),
        *(Choice(f"optim.{key}", value, optimizer_reason if key == "name" else "") for key, value in optimizer.items()),
        *(Choice(f"schedule.{key}", value) for key, value in schedule.items()),
        Choice("train.steps", steps, steps_reason),
        Choice("train.global_batch", size.global_batch, _batch_reason(cost, fitted, volumes, size)),
        Choice("train.micro_batch", fitted.micro_batch, batch_reason),
        Choice("train.precision", "auto", _precision_reason(cost)),
        Choice("train.channels_last", True, "Convolutions are faster in this layout."),
        Choice("train.clip_grad", *_clip(name, is_gpu=is_gpu)),
        Choice("validate.every", every, validation_reason),
        Choice("validate.overlap", 0.5, "nnU-Net's overlap of the windows, in validation and prediction."),
        Choice("checkpoint.every", 1000 if is_gpu else min(every, 1000), _CHECKPOINT_REASON),
        Choice("log.every", 25 if not is_gpu else 100),
    ]


_CHECKPOINT_REASON = "A killed training loses at most this many steps."


def _precision_reason(cost: CostModel) -> str:
    precision = cost.device.precision
    if cost.device.is_elsewhere:
        return "bf16; fp16 with a loss scaler on a GPU without bf16, such as a T4 or V100. Both take the same memory."
    return f"{precision.name} on this device."


def _steps(cost: CostModel, fitted: Fitted, volumes: PlannedVolumes, size: TrainingSize) -> tuple[int, str]:
    name = fitted.network.values["name"]
    if cost.device.is_gpu:
        if is_convolutional(name):
            return NNUNET_STEPS, (
                "nnU-Net's 1000 epochs of 250 steps. For a first look, train.steps=25000 gives most of the score in a"
                " tenth of the time."
            )
        return TRANSFORMER_STEPS, "The most steps of the thesis's recipe for Swin UNETR (20000 to 50000)."
    patches = max(1.0, prod(volumes.median_shape) / prod(fitted.network.patch))
    wanted = ceil(CPU_PASSES * size.cases * patches / size.global_batch / 100) * 100
    steps = min(max(wanted, CPU_STEPS[0]), CPU_STEPS[1])
    minutes = steps * cost.step_s(fitted.network, size.global_batch) / 60
    return steps, (
        f"A step takes {BACKWARD * size.global_batch * cost.multiply_adds(fitted.network) / 1e9:.3g} billion"
        f" multiply-adds. {CPU_PASSES} passes over the {size.cases} training cases, at least {CPU_STEPS[0]} and at most"
        f" {CPU_STEPS[1]} steps: roughly {_duration(minutes)} on this CPU. More steps give a better result."
    )


def _batch_reason(cost: CostModel, fitted: Fitted, volumes: PlannedVolumes, size: TrainingSize) -> str:
    is_gpu, ranks = cost.device.is_gpu, cost.device.ranks
    if ranks > 1 and fitted.micro_batch == least_micro_batch(ranks):
        return f"The fewest samples for {ranks} GPUs: memory goes into the patch first."
    if size.global_batch > MIN_BATCH:
        limit = largest_batch(volumes, size.cases, fitted.network.patch)
        at_limit = size.global_batch == limit // ranks * ranks
        why = "5 % of the voxels of the training cases, nnU-Net's limit" if at_limit else "the memory"
        return f"Memory does not limit the patch, so what is spare goes into the batch, up to {why}."
    if is_gpu and fitted.is_largest and largest_batch(volumes, size.cases, fitted.network.patch) == MIN_BATCH:
        return "nnU-Net's smallest batch: its limit of 5 % of the voxels of the training cases allows no more."
    if is_gpu:
        return "nnU-Net's smallest batch: memory goes into the patch first."
    return "nnU-Net's smallest batch: on a CPU more steps bring more than larger batches."


def _clip(name: str, *, is_gpu: bool) -> tuple[float, str]:
    """The largest norm of the gradients, and the reason."""
    if is_gpu and is_convolutional(name):
        return 12.0, "nnU-Net's largest norm of the gradients."
    return 1.0, "Largest norm of the gradients."


def _schedule(name: str, *, is_gpu: bool) -> tuple[dict[str, Any], str]:
    """The section `schedule`, and the reason for it and the optimizer."""
    if is_gpu and is_convolutional(name):
        return {"name": "polynomial", "warmup": 0, "power": 0.9}, "nnU-Net's: SGD with Nesterov momentum, polynomial."
    if is_gpu:
        return {"name": "cosine", "warmup": 500}, "Swin UNETR's and MONAI's: AdamW with warm-up and a cosine."
    return {"name": "cosine", "warmup": 50}, (
        "AdamW with a high rate and a cosine to 0: nnU-Net's SGD needs many more steps than a CPU can do."
    )


def _validation(
    fitted: Fitted, volumes: PlannedVolumes, size: TrainingSize, steps: int, *, is_gpu: bool
) -> tuple[int, str]:
    """Steps between validations, and the reason.

    A validation is one of whole volumes. All validations together take at most 5 % of the time. They come at most ten
    times on a CPU, and at most once in an epoch of nnU-Net on a GPU.
    """
    if not size.validation_cases:
        return steps, "Nothing is validated."
    count = size.validation_cases * windows(volumes.median_shape, fitted.network.patch)
    cost_steps = count / (BACKWARD * size.global_batch)  # a forward pass of a window against a training step
    cost_steps += VOLUME_STEPS * size.validation_cases if is_gpu else 0
    unit, least = (EPOCH, EPOCH) if is_gpu else (50, max(50, steps / 10))
    every = min(max(cost_steps / VALIDATION_SHARE, least), max(1, steps // 2))
    rounded = ceil(every / unit) * unit if every >= unit else ceil(every)
    share = f"{cost_steps / rounded:.1%}" if cost_steps > 0.001 * rounded else "less than 0.1%"
    volume_text = f" in {counted(size.validation_cases, 'volume')}" if is_gpu else ""
    epoch_text = f" The interval is a multiple of nnU-Net's epoch of {EPOCH} steps." if is_gpu else ""
    return rounded, (
        f"A validation has {counted(count, 'window')}{volume_text} and takes about as long as"
        f" {counted(max(1, round(cost_steps)), 'step')}: validations take"
        f" {share} of the time.{epoch_text}"
    )


def _duration(minutes: float) -> str:
    return f"{max(1, round(minutes))} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
