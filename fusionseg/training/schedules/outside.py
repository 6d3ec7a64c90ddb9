"""A learning-rate schedule from outside: a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from fusionseg.config.outside import failure_text, import_part
from fusionseg.config.outside_part import OutsidePart
from fusionseg.config.parts.sections import ScheduleSection
from fusionseg.config.registry import schedules


@lru_cache
def _function(name: str, found_in: str | None) -> Callable[..., Any]:
    """Import the function of a dotted path once, because every step calls it."""
    function: Callable[..., Any] = import_part(name, found_in)
    return function


@schedules.register_outside
class OutsideSchedule(OutsidePart, ScheduleSection):
    """A schedule of the user's own: a function (step, steps, lr, **args) that gives the learning rate.

    The result depends on its arguments alone; else a run that is resumed would not repeat it.
    """

    def positional_arguments(self) -> int:
        """Return 3: the step, the number of steps, and `optim.lr`."""
        return 3

    def learning_rate(self, step: int, steps: int, lr: float) -> float:
        """The learning rate of step `step` (from 0) of `steps`."""
        return float(_function(self.name, self.found_in)(step, steps, lr, **self.args))

    def problems(self, steps: int, lr: float) -> list[str]:
        """Try the first and the last step; see `ScheduleSection.problems`."""
        for step in (0, steps - 1):
            try:
                rate = self.learning_rate(step, steps, lr)
            except Exception as error:  # the user's own code may raise anything
                return [f"schedule.name: {self.name} fails at step {step}: {failure_text(error)}; correct it"]
            if not (math.isfinite(rate) and rate >= 0):
                return [
                    f"schedule.name: {self.name} gives {rate} at step {step} (expected a finite learning rate of at"
                    " least 0); correct it"
                ]
        return []
