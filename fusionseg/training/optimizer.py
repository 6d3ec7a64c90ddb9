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


def warmup_warning(config: RunConfig) -> str:
    """A warning for the user if the warm-up of a run is cut; else an empty text."""
    return config.schedule.warning(config.train.steps - config.finetune.restart)
