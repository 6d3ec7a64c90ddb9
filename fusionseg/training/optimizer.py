"""Optimizers, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from monai.optimizers import Novograd
from torch import nn

from fusionseg.config import OptimConfig, RunConfig, ScheduleConfig


def build_optimizer(
    config: OptimConfig, parameters: Iterable[nn.Parameter] | list[dict[str, Any]]
) -> torch.optim.Optimizer:
    """The optimizer of a configuration; torch's own as their fused kernels, which can skip a step on the device.

    Args:
        parameters: of the network, or groups of those that learn (fusionseg.training.fine_tuning).
    """
    trainable: list[Any] = [each for each in parameters if isinstance(each, dict) or each.requires_grad]
    lr, decay = config.lr, config.weight_decay
    if config.name == "sgd":
        momentum = 0.99 if config.momentum is None else config.momentum
        sgd = torch.optim.SGD(
            trainable, lr=lr, weight_decay=decay, momentum=momentum, nesterov=momentum > 0, fused=True
        )
        if momentum > 0:
            # torch 2.13 would make it at the first step, uninitialised, for its kernel to fill; the kernel leaves it as
            # it is when that step is skipped, as first steps in fp16 are.
            for parameter in (each for group in sgd.param_groups for each in group["params"]):
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    if config.name == "novograd":
        optimizer: torch.optim.Optimizer = Novograd(
            trainable, lr=lr, weight_decay=decay, betas=config.betas or (0.9, 0.98)
        )
        return optimizer
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(trainable, lr=lr, weight_decay=decay, betas=config.betas or (0.9, 0.999), fused=True)


def learning_rate(step: int, steps: int, lr: float, schedule: ScheduleConfig) -> float:
    """Learning rate of step `step` (from 0) of `steps`.

    A linear warm-up to `lr`, then cosine (Loshchilov and Hutter, 2017), polynomial, or constant.
    """
    warmup = warmup_steps(schedule, steps)
    if step < warmup:
        return lr * (step + 1) / warmup
    if schedule.name == "constant":
        return lr
    progress = (step - warmup) / max(1, steps - warmup)
    fall = 0.5 * (1 + math.cos(math.pi * progress)) if schedule.name == "cosine" else (1 - progress) ** schedule.power
    return schedule.min_lr + (lr - schedule.min_lr) * fall


def warmup_steps(schedule: ScheduleConfig, steps: int) -> int:
    """Length of the warm-up in a run of `steps` steps.

    A rate that falls after the warm-up needs steps to fall in. If the configured warm-up leaves none, the warm-up takes
    a tenth of the run. The configuration keeps the configured value, so that its hash does not depend on this rule.
    """
    if schedule.name != "constant" and schedule.warmup >= steps:
        return steps // 10
    return schedule.warmup


def warmup_warning(config: RunConfig) -> str:
    """A warning for the user if the warm-up of a run is cut; else an empty text."""
    schedule, steps = config.schedule, config.train.steps
    used = warmup_steps(schedule, steps)
    if used == schedule.warmup:
        return ""
    return (
        f"schedule.warmup: {schedule.warmup} steps do not end before train.steps {steps}: cut to {used} steps, a tenth"
        " of the run"
    )
