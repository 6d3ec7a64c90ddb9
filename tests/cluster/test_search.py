"""The file of a search, its draws and its decisions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from written_runs import write_run

from fusionseg.cluster.search.halving import decide, open_search
from fusionseg.cluster.search.results import search_table
from fusionseg.cluster.search.search_file import SearchConfig
from fusionseg.cluster.status import RunOverview, read_status
from fusionseg.cluster.sweep import Sweep, load_sweep
from fusionseg.config import RunConfig, dump_config
from fusionseg.runs.job_events import JobEvent, write_event
from fusionseg.runs.records import is_measurement, last_end, read_records
from fusionseg.runs.run_config import write_run_config
from fusionseg.training.start import train
from fusionseg.utils.errors import TrainingStopped, UserError

SPACE = "{optim.lr: {log: [1.0e-5, 1.0e-2]}, train.global_batch: [1, 2], data.patch: [[16, 16, 16], [8, 8, 8]]}"


@pytest.fixture
def open_sweep(tmp_path: Path, balls: Path, tiny_config: Callable[..., RunConfig]) -> Callable[..., Sweep]:
    (tmp_path / "base.yaml").write_text(dump_config(tiny_config(balls, tmp_path / "runs")))

    def start(text: str, *overrides: str) -> Sweep:
        (tmp_path / "s.yaml").write_text(f"name: s\nbase: base.yaml\n{text}")
        return load_sweep(tmp_path / "s.yaml", overrides)

    return start


@pytest.mark.parametrize(
    ("limits", "rungs"), [((500, 8000, 3), [500, 1500, 4500, 8000]), ((1, 8, 2), [1, 2, 4, 8]), ((5, 5, 2), [5])]
)
def test_rungs(limits: tuple[int, int, int], rungs: list[int]) -> None:
    least, most, factor = limits
    assert SearchConfig(min_steps=least, max_steps=most, factor=factor).rungs == rungs


def test_trials_are_drawn_by_their_number(open_sweep: Callable[..., Sweep]) -> None:
    text = f"search: {{min_steps: 4, max_steps: 16, trials: %d, space: {SPACE}, seed: %d}}"
    few, more, other = (open_sweep(text % each).runs for each in ((3, 1), (40, 1), (3, 2)))
    assert [run.settings for run in few] == [run.settings for run in more[:3]] != [run.settings for run in other]
    assert [run.config.name for run in few] == ["trial000", "trial001", "trial002"]
    rates = sorted(run.config.optim.lr for run in more)
    assert 1e-5 <= rates[0] < 1e-4 and 1e-3 < rates[-1] <= 1e-2 and 1e-4 < rates[20] < 1e-3
    assert {run.config.train.global_batch for run in more} == {1, 2}
    assert {run.config.train.steps for run in more} == {16} and {run.config.stop.at for run in more} == {None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{min_steps: 8, max_steps: 4}", r"search.min_steps .*: 8 is above max_steps"),
        ("{min_steps: 3, max_steps: 16}", r"search.min_steps: expected a multiple of validate.every \(4\), got 3"),
        ("{min_steps: 4, max_steps: 16, trials: 3}", "belong together"),
        (
            "{min_steps: 4, max_steps: 16, trials: 3, space: {optim.lr: {log: [0, 1]}}}",
            r"search.space .*: optim.lr: expected low",
        ),
        ("{min_steps: 4, max_steps: 16, trials: 3, space: {optim.lr: {log: [a, 1]}}}", "expected numbers as limits"),
        (
            "{min_steps: 4, max_steps: 16, trials: 3, space: {optim.lr: {uniform: [-1, .nan]}}}",
            "expected numbers as limits",
        ),
        ("{min_steps: 4, max_steps: 16, trials: 2, space: {train.steps: [10]}}", "train.steps: is set by the search"),
        ("{min_steps: 4, max_steps: 16, trials: 2, space: {name: [a, b]}}", "name is set by the search"),
        ("{min_steps: 4, max_steps: 16}\nset: {train.steps: 5}", "train.steps: is set by the search"),
        ("{min_steps: 4, max_steps: 16}\nset: {data.fold: all}", "data.fold=all validates nothing"),
    ],
)
def test_an_impossible_search_is_refused(open_sweep: Callable[..., Sweep], text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_sweep(f"search: {text}")


def test_the_command_line_cannot_change_the_steps_of_a_search(open_sweep: Callable[..., Sweep]) -> None:
    with pytest.raises(UserError, match=r"train.steps=5: varies in .*s.yaml"):
        open_sweep("search: {min_steps: 4, max_steps: 16}", "train.steps=5")


def test_ranking() -> None:
    config = SearchConfig(min_steps=1, max_steps=9)
    scores = {"a": 0.5, "b": None, "c": 0.7, "d": 0.7, "e": 0.1}
    rung = decide(1, scores, {"b": "killed"}, config, keeps=3)
    assert rung.promoted == ("c", "d", "a") and rung.rank("e") == 4 and rung.best == "c"
    lowest = decide(1, scores, {}, config.model_copy(update={"mode": "min"}), keeps=1)
    assert lowest.promoted == ("e",)
    nothing = decide(1, {"a": None}, {"a": "killed"}, config, keeps=1)
    assert nothing.promoted == () and nothing.best is None


def test_a_rung_is_decided_when_every_run_has_ended(
    open_sweep: Callable[..., Sweep],
) -> None:
    sweep = open_sweep("grid: {seed: [0, 1, 2]}\nsearch: {min_steps: 10, max_steps: 40}\nset: {validate.every: 10}")
    search = open_search(sweep)
    for seed, score in enumerate((0.4, 0.6)):
        write_run(sweep.folder / f"seed{seed}", [score])
    same, left = search.decided({})
    assert left == ["seed2"] and same.rungs == () and not (sweep.folder / "search.json").exists()
    write_run(sweep.folder / "seed2", [0.5])
    decided, left = search.decided({})
    assert not left and decided.rungs[0].promoted == ("seed1",)
    assert [run.config.name for run in open_search(sweep).members] == ["seed1"]
    assert "rank 2 of 3" in (sweep.folder / "seed2/jobs.jsonl").read_text()
    other = replace(decided, config=decided.config.model_copy(update={"metric": "ssim"}), rungs=())
    with pytest.raises(UserError, match=r"search.metric: no validation has 'ssim' \(expected one of .*dice"):
        other.decided({})


def test_a_rung_whose_runs_have_all_failed_is_not_decided(open_sweep: Callable[..., Sweep]) -> None:
    """The cause lies outside of their settings, such as data that are not mounted."""
    sweep = open_sweep("grid: {seed: [0, 1]}\nsearch: {min_steps: 10, max_steps: 40}\nset: {validate.every: 10}")
    for run in sweep.runs:
        write_run_config(run.folder, run.config)
        write_event(run.folder, JobEvent.FAILED, job="local", reason="no such folder", exit_status=2)
    search, left = open_search(sweep).decided({each.path.name: each for each in read_status(sweep.folder)[0]})
    assert left == ["seed0", "seed1"] and search.rungs == () and not (sweep.folder / "search.json").exists()


def trained(folder: Path) -> tuple[list[dict[str, object]], dict[str, torch.Tensor]]:
    """The records of a run without measurements, and the weights of its last step."""
    records = [{key: value for key, value in one.items() if not is_measurement(key)} for one in read_records(folder)]
    return records, torch.load(folder / "checkpoints/last.pt", weights_only=True)["model"]


def test_the_survivor_of_a_search_is_a_training_that_never_stopped(
    open_sweep: Callable[..., Sweep], tmp_path: Path
) -> None:
    sweep = open_sweep(
        "search: {min_steps: 2, max_steps: 6, factor: 3}\nset: {validate.every: 2, checkpoint.every: 1}\n"
        "points: [{name: bad, optim.lr: 1.0e+30, train.max_skipped: 1}, {name: slow, optim.lr: 1.0e-9}, {name: good}]"
    )
    for steps in (2, 6):
        search = open_search(sweep)  # from the folders alone, as another process would
        for run in search.part().runs:
            write_run_config(run.folder, run.config)
            with suppress(TrainingStopped):
                train(run.config)
        states: dict[str, RunOverview] = {state.path.name: state for state in read_status(sweep.folder)[0]}
        search, left = search.decided(states)
        assert not left and search.rungs[-1].steps == steps
    assert search.is_done and open_search(sweep).rungs == search.rungs
    first, last = search.rungs
    assert "non-finite loss" in first.failures["bad"] and first.scores["bad"] is None
    (winner,) = first.promoted
    assert last.best == winner != "bad" and [run.config.name for run in search.finalists().runs] == [winner]
    (loser,) = {"slow", "good"} - {winner}
    end = last_end(sweep.folder / loser)
    assert end is not None and (end["status"], end["reason"]) == ("stopped", "step 2 (stop.at)")
    (state,) = (one for one in read_status(sweep.folder)[0] if one.path.name == loser)
    assert (
        state.state == "stopped" and "stopped at rung 1 of 2: score" in state.reason and "rank 2 of 3" in state.reason
    )
    table = search_table(sweep.folder).splitlines()
    assert winner in table[2] and "trained to the end" in table[2] and "failed: 1 step" in table[4]

    (config,) = (run.config for run in sweep.runs if run.config.name == winner)
    train(config.model_copy(update={"output": str(tmp_path / "undisturbed")}))
    records, weights = trained(sweep.folder / winner)
    expected, same = trained(tmp_path / "undisturbed" / winner)
    assert records == expected and weights.keys() == same.keys()
    assert all(torch.equal(weights[key], same[key]) for key in same)
