"""Trials that Optuna's tree-structured Parzen estimator (TPE) proposes, from the scores of the trials before them.

Source: Bergstra, Bardenet, Bengio and Kegl, "Algorithms for hyper-parameter optimization", 2011.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from fusionseg.cluster.search.search_file import SearchConfig, rounded
from fusionseg.utils.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class Tried:
    """A trial whose bracket is done."""

    settings: Mapping[str, Any]
    """The values of the keys of the space."""
    scores: Mapping[int, float]
    """The score at each rung that the trial has reached, by steps; empty for one that failed in the first rung."""


def check_optuna(search: SearchConfig) -> None:
    """Make sure that the sampler of a search is installed.

    Raises:
        UserError: it is TPE, and Optuna is missing.
    """
    if search.sampler == "tpe" and find_spec("optuna") is None:
        raise UserError(
            "search.sampler: tpe: the package optuna is missing; pip install 'fusionseg[search]', or set sampler:"
            " random"
        )


def propose(search: SearchConfig, tried: Sequence[Tried], count: int) -> list[dict[str, Any]]:
    """Propose points for the next trials. They depend on the arguments and the version of Optuna alone.

    A trial that reached the last rung counts by its score. Those that were stopped earlier come after it, by their
    rung and their score there, as Optuna ranks pruned trials. A failed one comes last.

    Args:
        search: the space, the direction of the score and the seed.
        tried: the trials so far, in their order.
        count: number of points.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seed = int(np.random.SeedSequence([search.seed, len(tried)]).generate_state(1)[0])
    study = optuna.create_study(
        direction="maximize" if search.mode == "max" else "minimize",
        # The first bracket is drawn at random.
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=1),
    )
    space = {key: _distribution(values) for key, values in sorted(search.space.items())}
    for one in tried:
        study.add_trial(_as_trial(one, search, space))
    asked = [study.ask(space).params for _ in range(count)]
    return [{key: _value(search.space[key], value) for key, value in params.items()} for params in asked]


def _as_trial(tried: Tried, search: SearchConfig, space: Mapping[str, BaseDistribution]) -> FrozenTrial:
    from optuna.trial import TrialState, create_trial

    last = tried.scores.get(search.max_steps)
    return create_trial(
        state=TrialState.PRUNED if last is None else TrialState.COMPLETE,
        value=last,
        params={key: _param(search.space[key], tried.settings[key]) for key in space},
        distributions=dict(space),
        intermediate_values=dict(tried.scores),
    )


def _distribution(values: Any) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(values, list):  # by index, since a choice may be a list or a section
        return CategoricalDistribution(range(len(values)))
    ((form, (low, high)),) = values.items()
    return IntDistribution(low, high) if form == "int" else FloatDistribution(low, high, log=form == "log")


def _param(values: Any, value: Any) -> Any:
    return values.index(value) if isinstance(values, list) else value


def _value(values: Any, param: Any) -> Any:
    if isinstance(values, list):
        return values[param]
    ((form, (low, high)),) = values.items()
    return param if form == "int" else rounded(param, low, high)
