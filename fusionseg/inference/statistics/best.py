"""The best configuration on pooled cross-validation, and the prediction that uses it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionseg.inference.statistics.analysis import shared_values
from fusionseg.inference.statistics.intervals import LEVEL, Interval, mean_interval
from fusionseg.inference.statistics.members import (
    is_ensemble,
    is_scorable,
    members_of,
    options_of,
    postprocessing_remarks,
    without_partial,
)
from fusionseg.inference.statistics.pooled import Pooled
from fusionseg.inference.statistics.ranks import rank_stability
from fusionseg.inference.statistics.resampling import resample_counts
from fusionseg.inference.statistics.scores import PooledGroup, PooledRow
from fusionseg.inference.statistics.tables import interval_text
from fusionseg.metrics.definitions import DEFINITIONS, MetricDefinition
from fusionseg.utils.errors import UserError, some_of, suggest
from fusionseg.utils.tables import counted, markdown_table

BEST = "best.json"
_MAX_NAMED = 5


@dataclass(frozen=True)
class Candidate:
    """A row that could be chosen."""

    name: str
    runs: list[Path]
    """The run folders whose predictions are averaged to use the configuration."""
    is_ensemble: bool
    """The scores are those of ensembles that `fusionseg evaluate --with` scored."""
    is_scorable: bool
    """Some case was unseen by all of the runs, as with several seeds of one fold."""
    options: tuple[str, ...] | None
    """Options of the predictions that were scored, such as --tta; None if those of the runs differ."""
    score: Interval
    difference: Interval
    """Mean of this row minus the chosen one, case by case."""
    first: float
    """Share of the resamples of the cases in which the row is the best."""
    parameters: float
    """Parameters of the network, of all networks of an ensemble; nan if they are not known."""
    remarks: tuple[str, ...] = ()
    """Sentences about its post-processing."""


@dataclass(frozen=True)
class Choice:
    """The choice among the rows on one data set."""

    task: str
    data_set: str
    definition: MetricDefinition
    """Of the metric."""
    weights: str
    cases: int
    """Number of cases, which all candidates scored."""
    candidates: list[Candidate]
    """The chosen one first, then by score."""
    corrected: float
    """Score of the choice on cases that did not take part in it; nan for one candidate. See `out_of_bag_score`."""

    @property
    def metric(self) -> str:
        return self.definition.name

    @property
    def chosen(self) -> Candidate:
        return self.candidates[0]

    @property
    def close(self) -> list[Candidate]:
        """The other candidates whose difference from the chosen one has an interval with zero in it."""
        return [one for one in self.candidates[1:] if not one.difference.excludes_zero]

    @property
    def command(self) -> str:
        """The command that predicts with the chosen configuration."""
        runs = " ".join(shlex.quote(str(run)) for run in self.chosen.runs)
        options = " ".join(("--checkpoint", self.weights, *(self.chosen.options or ())))
        return f"fusionseg predict {runs} {options} -i INPUT -o OUTPUT"

    def to_json(self) -> dict[str, Any]:
        """Plain values for best.json; nan stays nan."""
        return {
            "task": self.task,
            "data_set": self.data_set,
            "metric": self.metric,
            "weights": self.weights,
            "cases": self.cases,
            "best": self.chosen.name,
            "runs": [str(run) for run in self.chosen.runs],
            "command": self.command,
            "score": self.chosen.score.to_json(),
            "score_corrected_for_the_choice": self.corrected,
            "not_clearly_worse": [one.name for one in self.close],
            "candidates": [
                {
                    "name": one.name,
                    "runs": [str(run) for run in one.runs],
                    "ensemble": one.is_ensemble,
                    "score": one.score.to_json(),
                    "difference": one.difference.to_json(),
                    "first": one.first,
                    "parameters": one.parameters,
                    "options": None if one.options is None else list(one.options),
                    "notes": list(one.remarks),
                }
                for one in self.candidates
            ],
            "notes": remarks_of(self),
        }


def choose(pooled: Pooled, metric: str, level: float = LEVEL, seed: int = 0) -> tuple[list[Choice], list[str]]:
    """Choose the row with the best mean over the cases that all rows scored, for each data set.

    Args:
        pooled: the scores.
        metric: name of the metric in cases.csv.
        level: the confidence of the intervals.
        seed: key of the resamples.

    Returns:
        The choices, and a message for each row that was left out and for each data set without a choice.

    Raises:
        UserError: there is no choice on any data set: the metric is not known or has no better direction, or the rows
            share no case.
    """
    known = list(dict.fromkeys(name for group in pooled.groups for name in group.metrics))
    if metric not in known:
        raise UserError(f"--metric: these runs have no metric {metric!r}; {suggest(metric, known)}")
    choices, problems = [], []
    for whole in pooled.groups:
        rows, notes = without_partial(whole.rows)
        group = replace(whole, rows=rows)
        problems += notes
        try:
            choices.append(_choice(group, metric, pooled.weights, level, seed))
        except UserError as error:
            problems += error.problems
    if not choices:
        raise UserError(dict.fromkeys(problems))
    return choices, problems


def _choice(group: PooledGroup, metric: str, weights: str, level: float, seed: int) -> Choice:
    cases, values = shared_values(group, metric)
    if not cases:
        names = some_of([row.name for row in group.rows], _MAX_NAMED)
        raise UserError(
            f"{names}: no case of {group.data_set} has a value of {metric} in all rows; evaluate the same folds"
        )
    definition = group.definition(metric)
    if definition is None or definition.higher_is_better is None:
        reason = (
            f"{metric} has no better direction" if metric in DEFINITIONS else f"the direction of {metric} is not known"
        )
        raise UserError(f"--metric: {reason}; choose another one, such as dice")
    is_higher = definition.higher_is_better
    merits = values if is_higher else -values
    order = sorted(range(len(group.rows)), key=lambda index: -merits[:, index].mean())
    first = rank_stability(values, higher_is_better=is_higher, level=level, seed=seed).first
    candidates = [
        Candidate(
            name=group.rows[index].name,
            runs=members_of(group.rows[index]),
            is_ensemble=is_ensemble(group.rows[index]),
            is_scorable=is_scorable(group.rows[index]),
            options=options_of(group.rows[index]),
            score=mean_interval(values[:, index], level, seed),
            difference=mean_interval(values[:, index] - values[:, order[0]], level, seed),
            first=first[index],
            parameters=_parameters(group.rows[index]),
            remarks=tuple(postprocessing_remarks(group.rows[index])),
        )
        for index in order
    ]
    score = out_of_bag_score(merits, seed)
    return Choice(
        group.task, group.data_set, definition, weights, len(cases), candidates, score if is_higher else -score
    )


def out_of_bag_score(merits: NDArray[np.float64], seed: int = 0) -> float:
    """The expected score of the best row on cases that did not take part in the choice.

    The row with the best mean is chosen on each resample of the cases, and scored on the cases that the resample lacks.
    The mean of the best row over all cases is optimistic, as the same cases chose it.

    Args:
        merits: one value for each case and row, without nan, (n, k); higher is better.
        seed: key of the resamples.

    Returns:
        The mean over the resamples; nan for one row or one case.

    Source: Tsamardinos et al., Bootstrapping the out-of-sample predictions for efficient and accurate
    cross-validation, Machine Learning 107, 2018.
    """
    count, rows = merits.shape
    if rows < 2 or count < 2:
        return nan
    scores = []
    for counts in resample_counts(count, seed):
        chosen = (counts @ merits).argmax(axis=1)
        outside = (counts == 0).astype(np.float64)
        number = outside.sum(axis=1)
        sums = (outside @ merits)[np.arange(len(chosen)), chosen]
        scores.append(sums[number > 0] / number[number > 0])
    return float(np.concatenate(scores).mean())


def _parameters(row: PooledRow) -> float:
    spread = row.row.spread("parameters")
    return nan if spread is None else spread.mean


def best_text(choices: Sequence[Choice]) -> str:
    """Describe choices: a table of the candidates, the reasons, and the command that predicts.

    Args:
        choices: one for each data set.
    """
    return "\n\n".join(_text(choice, named=len(choices) > 1) for choice in choices)


def _text(choice: Choice, *, named: bool) -> str:
    definition = choice.definition
    digits, best = definition.digits, choice.chosen
    direction = "highest" if definition.higher_is_better else "lowest"
    rows = [["name", "runs", f"{definition.title}", "difference", "first in", "parameters"]]
    for one in choice.candidates:
        difference = "-" if one is best else interval_text(one.difference, digits, signed=True)
        parameters = "-" if isnan(one.parameters) else f"{one.parameters / 1e6:.2f} M"
        first = f"{100 * one.first:.0f} %"
        rows.append([one.name, str(len(one.runs)), interval_text(one.score, digits), difference, first, parameters])
    lines = [
        f"best{f' on {choice.data_set}' if named else ''}: {best.name}, with the {direction} mean {definition.title} "
        f"over {counted(choice.cases, 'case')} that its runs were not trained on",
        "",
        markdown_table(rows),
        "",
        *(f"- {remark}" for remark in remarks_of(choice)),
        "",
        choice.command,
    ]
    return "\n".join(lines)


def remarks_of(choice: Choice) -> list[str]:
    """Sentences that a reader of the choice needs: how sure it is, and what the prediction is.

    Args:
        choice: the choice.
    """
    digits, best = choice.definition.digits, choice.chosen
    remarks = []
    if close := choice.close:
        names = some_of([one.name for one in close], _MAX_NAMED)
        remarks.append(f"not clearly worse (the interval of the difference has zero in it): {names}")
        smallest = min(close, key=lambda one: one.parameters if not isnan(one.parameters) else np.inf)
        if smallest.parameters < best.parameters:
            remarks.append(f"{smallest.name} has fewer parameters and may be the better choice")
    elif len(choice.candidates) > 1:
        remarks.append("every other row is worse: no interval of a difference has zero in it")
    if not isnan(choice.corrected):
        remarks.append(
            f"the score is optimistic, as the same cases chose the row; corrected for the choice by the bootstrap it is"
            f" {choice.corrected:.{digits}f}"
        )
    if len(best.runs) > 1 and not best.is_ensemble:
        reason = (
            "; fusionseg evaluate RUN --with RUN ... scores the average of runs of one fold"
            if best.is_scorable
            else ", as no case was unseen by all of them"
        )
        remarks.append(
            f"the command averages the {len(best.runs)} runs of the row; the score is that of single runs{reason}"
        )
    if best.options is None:
        remarks.append("the runs of the row were evaluated with different options; the command has none of them")
    if best.is_ensemble and len(best.runs) > 1:
        remarks.append(f"the command averages all {len(best.runs)} runs of the ensembles")
    remarks += best.remarks
    return remarks
