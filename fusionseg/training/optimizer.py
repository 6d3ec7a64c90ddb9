"""The optimizer of a run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fusionseg.config import RunConfig
from fusionseg.config.parts.sections import OptimizerSection, ScheduleSection


def build_optimizer(
    config: OptimizerSection, parameters: Iterable[nn.Parameter] | list[dict[str, Any]]
) -> torch.optim.Optimizer:
    """Build the optimizer of a configuration over the parameters that learn.

    Args:
        config: the `optim` section.
        parameters: the parameters of the network, or groups of those that learn (`Task.parameter_groups`).
    """
    return config.build([each for each in parameters if isinstance(each, dict) or each.requires_grad])


def learning_rate(step: int, steps: int, lr: float, schedule: ScheduleSection, restart: int = 0) -> float:
    """The learning rate of step `step` (from 0) of `steps`.

    Args:
        step: the step.
        steps: number of steps of the run.
        lr: `optim.lr`.
        schedule: the `schedule` section.
        restart: the step at which the schedule begins again (`finetune.restart_schedule`); 0 if it runs once.
    """
    if step < restart:
        return schedule.before_restart(restart).learning_rate(step, restart, lr)
    return schedule.learning_rate(step - restart, steps - restart, lr)


def rate_of(config: RunConfig, step: int) -> float:
    """The learning rate of step `step` (from 0) of a run."""
    return learning_rate(step, config.train.steps, config.optim.lr, config.schedule, config.finetune.restart)


def changed_settings(before: OptimizerSection, now: OptimizerSection) -> frozenset[str]:
    """The settings in the groups of an optimizer that differ between two sections of the same optimizer, without "lr".

    A checkpoint has the settings under which it was saved; a run that goes on with others takes these of the new ones.

    Args:
        before, now: the `optim` sections.
    """
    if before == now:
        return frozenset()
    old, new = (section.build([nn.Parameter(torch.zeros(1))]).defaults for section in (before, now))
    return frozenset(name for name in new if name != "lr" and old.get(name) != new[name])


def warmup_warning(config: RunConfig) -> str:
    """A warning for the user if the warm-up of a run is cut; else an empty text."""
    return config.schedule.warning(config.train.steps - config.finetune.restart)
