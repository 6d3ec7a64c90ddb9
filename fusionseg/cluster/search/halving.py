"""Successive halving: the rungs of a search, the score of each run at a rung, and the runs that go on.

The state is in the run folders, and in one file of decisions. So the same command continues a search that was killed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fusionseg.cluster.search.search_file import SearchConfig
from fusionseg.cluster.status import RunOverview
from fusionseg.cluster.sweep import Sweep, SweepRun
from fusionseg.runs.job_events import JobEvent, read_events, write_event
from fusionseg.runs.json_files import JsonObject, is_number, read_object
from fusionseg.runs.records import RecordKind, has_finished, last_end, read_records
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import write_json

log = logging.getLogger("fusionseg")

DECISIONS = "search.json"
"""File of the decisions, in the folder of the sweep."""


@dataclass(frozen=True)
class Rung:
    """A rung whose runs have all ended."""

    steps: int
    scores: dict[str, float | None]
    """The score of each run of the rung, in the order of the sweep; None for a run that failed."""
    failures: dict[str, str]
    promoted: tuple[str, ...]
    """The runs that go on, the best first."""

    def rank(self, name: str) -> int:
        """The place of a run among the scored runs of the rung, from 1; the order of the sweep decides equal scores."""
        return self._ranking.index(name) + 1

    @property
    def best(self) -> str | None:
        """The run with the best score."""
        return self._ranking[0] if self._ranking else None

    _ranking: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Search:
    """A search, with the rungs that are decided."""

    sweep: Sweep
    config: SearchConfig
    rungs: tuple[Rung, ...]
    bracket: int = 0
    """Number of the bracket, from 0, if the sampler learns; each has a file of its own."""

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to train."""
        return len(self.rungs) == len(self.config.rungs) or any(not rung.promoted for rung in self.rungs)

    @property
    def members(self) -> list[SweepRun]:
        """The runs of the next rung."""
        if not self.rungs:
            return self.sweep.runs
        return [run for run in self.sweep.runs if run.config.name in self.rungs[-1].promoted]

    @property
    def title(self) -> str:
        """The next rung, for messages."""
        rung = f"rung {len(self.rungs) + 1} of {len(self.config.rungs)} (to step {self.config.rungs[len(self.rungs)]})"
        return rung if self.config.sampler == "random" else f"bracket {self.bracket + 1}, {rung}"

    def part(self) -> Sweep:
        """The sweep of the next rung: its runs, each of which stops at the steps of the rung."""
        steps = self.config.rungs[len(self.rungs)]
        stop_at = None if steps == self.config.max_steps else steps
        runs = [
            replace(
                run,
                config=run.config.model_copy(update={"stop": run.config.stop.model_copy(update={"at": stop_at})}),
            )
            for run in self.members
        ]
        return replace(self.sweep, runs=runs)

    def finalists(self) -> Sweep:
        """The sweep of the runs of the last rung."""
        names = self.rungs[-1].scores if self.rungs else ()
        return replace(self.sweep, runs=[run for run in self.sweep.runs if run.config.name in names])

    def decided(self, states: Mapping[str, RunOverview]) -> tuple[Search, list[str]]:
        """Decide the next rung if all of its runs have a score or have failed, and write the decision.

        Args:
            states: the state of each run, by name.

        Returns:
            The search with the decision, and the runs that have neither; if there are any, nothing is decided. Nothing
            is decided either if all runs have failed, as with data that are not mounted: all are returned.

        Raises:
            UserError: the validation records lack the metric.
        """
        steps = self.config.rungs[len(self.rungs)]
        scores: dict[str, float | None] = {}
        failures: dict[str, str] = {}
        open_runs: list[str] = []
        crashed: list[str] = []
        for run in self.members:
            name = run.config.name
            scores[name] = score_at(run, steps, self.config)
            state = states.get(name)
            if scores[name] is None and state is not None and state.has_failed:
                failures[name] = state.reason
                crashed.append(name)
            elif scores[name] is None and last_validation(run, steps) is not None:
                failures[name] = "its score is not a number"
            elif scores[name] is None:
                open_runs.append(name)
        if open_runs or len(crashed) == len(scores):
            return self, open_runs or crashed
        is_last = steps == self.config.max_steps
        rung = decide(
            steps, scores, failures, self.config, keeps=0 if is_last else max(1, len(scores) // self.config.factor)
        )
        search = replace(self, rungs=(*self.rungs, rung))
        search.write()
        search.explain()
        return search, []

    def write(self) -> None:
        """Write the decisions, whole or not at all."""
        write_json(
            self.sweep.folder / decisions_file(self.bracket),
            {
                "search": self.config.model_dump(mode="json"),
                "trials": {run.config.name: run.settings for run in self.sweep.runs},
                "rungs": [
                    {"steps": one.steps, "scores": one.scores, "failures": one.failures, "promoted": one.promoted}
                    for one in self.rungs
                ],
            },
        )

    def explain(self) -> None:
        """Record the reason of each run that the last decided rung has stopped among the events of the run."""
        if not self.rungs or self.rungs[-1].steps == self.config.max_steps:
            return
        rung, number = self.rungs[-1], len(self.rungs)
        for name, score in rung.scores.items():
            if name in rung.promoted or score is None:
                continue
            reason = (
                f"stopped at rung {number} of {len(self.config.rungs)}: {self.config.metric or 'score'} {score:.4g},"
                f" rank {rung.rank(name)} of {len(rung.scores)}"
            )
            folder = self.sweep.folder / name
            events = read_events(folder)
            if not events or events[-1].get("reason") != reason:  # the command was killed before it wrote all of them
                job = str(events[-1].get("job", "local")) if events else "local"
                write_event(folder, JobEvent.STOPPED, job=job, reason=reason, step=rung.steps)


def decisions_file(bracket: int) -> str:
    """The name of the file with the decisions of a bracket."""
    return DECISIONS if bracket == 0 else f"search_{bracket + 1:03d}.json"


def recorded_trials(folder: Path, bracket: int) -> dict[str, dict[str, Any]]:
    """The settings of each trial of a bracket, by name; none if the bracket has not begun.

    Args:
        folder: of the sweep.
        bracket: its number, from 0.
    """
    found: dict[str, dict[str, Any]] = dict(read_object(folder / decisions_file(bracket)).get("trials", {}))
    return found


def open_search(sweep: Sweep, bracket: int = 0) -> Search:
    """Open the search of a sweep, with the decisions that are made.

    Args:
        sweep: a sweep with a `search`; its runs are those of the bracket.
        bracket: number of the bracket, from 0.

    Raises:
        UserError: the folder holds another search.
    """
    assert sweep.search is not None
    file = sweep.folder / decisions_file(bracket)
    stored = read_object(file)
    if not stored:
        return Search(sweep, sweep.search, (), bracket)
    now = sweep.search.model_dump(mode="json")
    before: Any = stored.get("search")
    changed = [key for key in now if not isinstance(before, dict) or before.get(key) != now[key]]
    if list(stored.get("trials", ())) != [run.config.name for run in sweep.runs]:
        changed.append("runs")
    if changed:
        raise UserError(
            f"{file}: holds the decisions of another search (different: {', '.join(changed)}):"
            " choose another name for the sweep, or another output"
        )
    rungs = tuple(_rung(each, sweep.search) for each in stored.get("rungs", ()))
    search = Search(sweep, sweep.search, rungs, bracket)
    search.explain()
    return search


def decide(
    steps: int, scores: dict[str, float | None], failures: dict[str, str], config: SearchConfig, *, keeps: int
) -> Rung:
    """Rank the runs of a rung, and choose those that go on.

    Args:
        steps: of the rung.
        scores: of each run, in the order of the sweep, which decides equal scores; None for a run that failed.
        failures: the reason of each failed run.
        config: has the direction of the score.
        keeps: number of runs that go on, at most.
    """
    sign = -1 if config.mode == "max" else 1
    ranking = sorted(
        (name for name in scores if scores[name] is not None), key=lambda name: sign * (scores[name] or 0.0)
    )
    return Rung(steps, scores, failures, tuple(ranking[:keeps]), tuple(ranking))


def last_validation(run: SweepRun, steps: int) -> JsonObject | None:
    """The validation record of a run at the steps of a rung; of a run that has finished before them, its last one."""
    found = [one for one in read_records(run.folder) if one["kind"] == RecordKind.VAL and one["step"] <= steps]
    if not found:
        return None
    end = last_end(run.folder)
    has_ended = end is not None and has_finished(end["status"])
    return found[-1] if found[-1]["step"] == steps or has_ended else None


def score_at(run: SweepRun, steps: int, config: SearchConfig) -> float | None:
    """The score of a run at a rung; None if it has none yet, or it is not a number.

    Raises:
        UserError: the validation record lacks the metric.
    """
    record = last_validation(run, steps)
    if record is None:
        return None
    field_name = config.metric or run.config.task_info.score
    if field_name not in record:
        known = sorted(name for name, value in record.items() if is_number(value) and name not in ("step", "cases"))
        raise UserError(f"search.metric: no validation has {field_name!r} (expected one of {', '.join(known)})")
    value = record[field_name]
    return float(value) if is_number(value) else None


def _rung(stored: Mapping[str, Any], config: SearchConfig) -> Rung:
    scores = dict(stored["scores"])
    return decide(stored["steps"], scores, dict(stored["failures"]), config, keeps=len(stored["promoted"]))


def still_active(names: Iterable[str], states: Mapping[str, RunOverview]) -> list[str]:
    """List the runs that wait or run.

    Args:
        names: of the runs.
        states: the state of each run of the sweep, by name.
    """
    return [name for name in names if name in states and states[name].is_active]
