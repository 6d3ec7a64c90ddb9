"""Brackets of a search whose sampler learns: a batch of trials goes through all rungs before the next is proposed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fusionseg.cluster.search.halving import Rung, Search, recorded_trials
from fusionseg.cluster.search.search_file import trial_name
from fusionseg.cluster.search.tpe import Tried, propose
from fusionseg.cluster.sweep import Sweep


def next_points(done: Sequence[Search]) -> list[dict[str, Any]]:
    """The points of the next bracket, by name and key path: those that are recorded, or new ones.

    Args:
        done: all brackets so far, whose rungs are decided.

    Returns:
        The points; none if no trial is left.
    """
    config, first = done[0].config, sum(len(search.sweep.runs) for search in done)
    count = min(config.batch_size, (config.trials or 0) - first) if config.sampler == "tpe" else 0
    if count <= 0:
        return []
    if recorded := recorded_trials(done[0].sweep.folder, len(done)):
        return [{"name": name, **settings} for name, settings in recorded.items()]
    tried = [
        Tried(run.settings, _scores(run.config.name, search.rungs)) for search in done for run in search.sweep.runs
    ]
    return [{"name": trial_name(number), **point} for number, point in enumerate(propose(config, tried, count), first)]


def _scores(name: str, rungs: Sequence[Rung]) -> dict[int, float]:
    found = {rung.steps: rung.scores.get(name) for rung in rungs}
    return {steps: score for steps, score in found.items() if score is not None}


def best_of(done: Sequence[Search]) -> str | None:
    """The run with the best score of all brackets that were trained to the end; None if there is none."""
    sign = 1 if done[0].config.mode == "max" else -1
    last = [(search.rungs[-1], search.rungs[-1].best) for search in done]
    scored = [(sign * score, name) for rung, name in last if name and (score := rung.scores[name]) is not None]
    # Of equal scores, that of the earlier bracket.
    return max(scored, key=lambda one: one[0])[1] if scored else None


def finalists_of(done: Sequence[Search]) -> Sweep:
    """The sweep of the runs of the last rung of each bracket."""
    parts = [search.finalists() for search in done]
    return replace(parts[0], runs=[run for part in parts for run in part.runs])
