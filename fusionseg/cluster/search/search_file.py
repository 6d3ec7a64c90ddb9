"""The section `search` of a sweep's file: the rungs, and the space that trials are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from fusionseg.config import RunConfig
from fusionseg.config.data.splits import ALL
from fusionseg.config.section import Positive, Section
from fusionseg.utils.errors import UserError

_FORMS = "a list of values, {uniform: [low, high]}, {log: [low, high]} or {int: [low, high]}"


class SearchConfig(Section):
    """Successive halving over the runs of a sweep, or over points that are drawn from a space.

    Source: Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", 2016.
    """

    method: Literal["successive_halving"] = "successive_halving"
    """All runs train for `min_steps`. The best of a rung go on to `factor` times as many steps, up to `max_steps`."""
    metric: str | None = None
    """Field of the validation records that ranks the runs; null is the score of the task, such as dice."""
    mode: Literal["max", "min"] = "max"
    """Whether the highest or the lowest value is the best."""
    min_steps: Positive
    """Steps of the first rung. A multiple of `validate.every`."""
    max_steps: Positive
    """Steps of the last rung, and `train.steps` of every run: its learning rate follows all steps."""
    factor: Annotated[int, Field(ge=2)] = 3
    """One of so many runs goes on to the next rung; at least one does."""
    trials: Positive | None = None
    """Number of points that are drawn from `space`."""
    space: dict[str, Any] = Field(default_factory=dict)
    """`key.path: values` to draw from: a list, {uniform: [low, high]}, {log: [low, high]} or {int: [low, high]}."""
    sampler: Literal["random", "tpe"] = "random"
    """`random`: each trial is drawn by itself, and more trials keep those that are there. `tpe`: Optuna's TPE proposes
    trials from the scores of earlier ones, in batches, each of which goes through all rungs (pip install
    'fusionseg[search]')."""
    batch: Annotated[int, Field(ge=2)] | None = None
    """Trials that `tpe` proposes at once; null is `factor` x `factor`. The first ones are drawn at random."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the draws from `space`."""

    @model_validator(mode="after")
    def _is_possible(self) -> SearchConfig:
        problems = []
        if self.min_steps > self.max_steps:
            problems.append(f"min_steps: {self.min_steps} is above max_steps ({self.max_steps}); lower it")
        if (self.trials is None) != (not self.space):
            problems.append("trials and space: belong together; set both, or none to search the points and the grid")
        if self.sampler == "tpe" and not self.space:
            problems.append("sampler: tpe: proposes trials; set space and trials, or sampler: random")
        if self.sampler == "random" and self.batch is not None:
            problems.append("batch: has no effect on sampler: random; remove it, or set sampler: tpe")
        for key, values in self.space.items():
            if problem := _problem(values):
                problems.append(f"space: {key}: {problem}")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def rungs(self) -> list[int]:
        """The steps of each rung, ascending."""
        found = [self.min_steps]
        while found[-1] * self.factor < self.max_steps:
            found.append(found[-1] * self.factor)
        return found if found[-1] == self.max_steps else [*found, self.max_steps]

    @property
    def batch_size(self) -> int:
        """Trials of a bracket, if the sampler learns."""
        return self.batch or self.factor**2

    def points(self) -> list[dict[str, Any]]:
        """The points that are drawn from the space at the beginning, by name and key path."""
        trials = self.trials or 0
        count = min(trials, self.batch_size) if self.sampler == "tpe" else trials
        return [{"name": trial_name(number), **self._draw(number)} for number in range(count)]

    def _draw(self, number: int) -> dict[str, Any]:
        generator = np.random.default_rng([self.seed, number])
        return {key: _value(self.space[key], generator) for key in sorted(self.space)}


def trial_name(number: int) -> str:
    """The name of a trial, from its number."""
    return f"trial{number:03d}"


def check_rungs(shown: str, search: SearchConfig, runs: Sequence[RunConfig]) -> None:
    """Refuse a search whose rungs end without a validation.

    Args:
        shown: the file of the sweep, for the message.
        search: its search.
        runs: the configurations of its runs.

    Raises:
        UserError: with all problems.
    """
    problems: dict[str, None] = {}
    for run in runs:
        every = run.validation.every
        if run.data.fold == ALL:
            problems[f"{shown}: search: data.fold=all validates nothing, and a search needs scores"] = None
        if len(search.rungs) > 1 and search.min_steps % every:
            problems[
                f"{shown}: search.min_steps: expected a multiple of validate.every ({every}), got {search.min_steps};"
                f" choose {max(1, round(search.min_steps / every)) * every}, or another validate.every"
            ] = None
    if problems:
        raise UserError(list(problems))


def _problem(values: Any) -> str:
    if isinstance(values, list) and values:
        return ""
    if not isinstance(values, dict) or len(values) != 1:
        return f"expected {_FORMS}, got {values!r}"
    ((form, limits),) = values.items()
    if form not in ("uniform", "log", "int") or not isinstance(limits, list) or len(limits) != 2:
        return f"expected {_FORMS}, got {values!r}"
    kinds = (int,) if form == "int" else (int, float)
    if not all(isinstance(limit, kinds) and not isinstance(limit, bool) and isfinite(limit) for limit in limits):
        return f"expected {'integers' if form == 'int' else 'numbers'} as limits, got {limits!r}"
    if limits[0] >= limits[1] or (form == "log" and limits[0] <= 0):
        return f"expected low < high{', both above 0' if form == 'log' else ''}, got {limits!r}"
    return ""


def _value(values: Any, generator: np.random.Generator) -> Any:
    if isinstance(values, list):
        return values[int(generator.integers(len(values)))]
    ((form, (low, high)),) = values.items()
    if form == "int":
        return int(generator.integers(low, high, endpoint=True))
    drawn = generator.uniform(np.log(low), np.log(high)) if form == "log" else generator.uniform(low, high)
    return rounded(np.exp(drawn) if form == "log" else drawn, low, high)


def rounded(value: float, low: float, high: float) -> float:
    """Round a value to four digits, within its limits."""
    return min(max(float(f"{value:.4g}"), float(low)), float(high))
