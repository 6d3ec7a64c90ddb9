"""Cosine, polynomial and constant learning rates, with a linear warm-up."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from fusionseg.config.parts.sections import ScheduleSection
from fusionseg.config.registry import schedules


@schedules.register()
class ScheduleConfig(ScheduleSection):
    """The learning rate as a function of the step."""

    name: Literal["cosine", "polynomial", "constant"] = "cosine"
    """The fall of the rate after the warm-up: cosine (Loshchilov and Hutter, 2017), polynomial, or none."""
    warmup: Annotated[int, Field(ge=0)] = 500
    """Steps of linear rise from lr/warmup to lr. A warm-up that does not end before `train.steps` is cut to a tenth of
    the steps, with a warning (not with `constant`)."""
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    """Final learning rate of cosine and polynomial."""
    power: Annotated[float, Field(gt=0)] = 0.9
    """Exponent of polynomial (nnU-Net's 0.9)."""

    def warmup_steps(self, steps: int) -> int:
        """Length of the warm-up in a run of `steps` steps.

        A rate that falls after the warm-up needs steps to fall in. If the configured warm-up leaves none, the warm-up
        takes a tenth of the run. The configuration keeps the configured value, so that its hash does not depend on this
        rule.
        """
        return steps // 10 if self.name != "constant" and self.warmup >= steps else self.warmup

    def learning_rate(self, step: int, steps: int, lr: float) -> float:
        """The learning rate of step `step` (from 0) of `steps`."""
        warmup = self.warmup_steps(steps)
        if step < warmup:
            return lr * (step + 1) / warmup
        if self.name == "constant":
            return lr
        progress = (step - warmup) / max(1, steps - warmup)
        fall = 0.5 * (1 + math.cos(math.pi * progress)) if self.name == "cosine" else (1 - progress) ** self.power
        return self.min_lr + (lr - self.min_lr) * fall

    def problems(self, steps: int, lr: float) -> list[str]:
        """List what does not fit the run; see `ScheduleSection.problems`."""
        return [f"schedule.min_lr: {self.min_lr} is above optim.lr {lr}; lower it"] if self.min_lr > lr else []

    def before_restart(self, steps: int) -> ScheduleConfig:
        """The same schedule with a warm-up of half of the steps, see `ScheduleSection.before_restart`."""
        return self.model_copy(update={"warmup": steps // 2})

    def warning(self, steps: int) -> str:
        """A warning if the warm-up is cut; else an empty text."""
        used = self.warmup_steps(steps)
        if used == self.warmup:
            return ""
        return (
            f"schedule.warmup: {self.warmup} steps do not end before train.steps {steps}: cut to {used} steps, a tenth"
            " of the run"
        )
