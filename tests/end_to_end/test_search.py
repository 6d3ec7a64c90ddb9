"""A search over hyper-parameters by successive halving, on this machine."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tracker_packages import needs

from end_to_end.conftest import Train
from end_to_end.runs import COMMANDS, Program, Started, assert_same_run, records

SEARCH = {"min_steps": 10, "max_steps": 40, "factor": 4}
POINTS = [
    {"name": "bad", "optim.lr": 1e30, "train.max_skipped": 2},
    *({"name": f"lr{number}", "optim.lr": lr} for number, lr in enumerate((1e-6, 1e-2, 2e-2))),
]


@pytest.fixture
def sweep(tmp_path: Path, config_file: Path) -> Path:
    file = tmp_path / "s.yaml"
    fixed = {"validate.every": 10, "checkpoint.every": 5}
    raw = {"name": "s", "base": str(config_file), "set": fixed, "search": SEARCH, "points": POINTS}
    file.write_text(yaml.safe_dump(raw))
    (tmp_path / "local.yaml").write_text("{cluster: local, gpus_per_node: 0, parallel: 2}")
    return file


def start(program: Program, sweep: Path) -> Started:
    folder = sweep.parent
    return program.warm(COMMANDS, "submit", sweep, "--cluster", folder / "local.yaml", f"output={folder}/runs")


def decisions(sweep: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads((sweep.parent / "runs/s/search.json").read_text())
    except FileNotFoundError:
        return []
    rungs: list[dict[str, Any]] = found["rungs"]
    return rungs


@pytest.mark.long
def test_a_search_that_is_killed_goes_on_and_its_survivors_are_whole_trainings(
    program: Program, sweep: Path, train: Train
) -> None:
    folder = sweep.parent / "runs/s"
    first = start(program, sweep)
    limit = time.monotonic() + 600
    while not decisions(sweep) and first.status is None and time.monotonic() < limit:
        time.sleep(0.01)
    first.send(signal.SIGKILL)  # the driver alone; runs that it has started end by themselves
    told = first.wait(600)
    assert decisions(sweep), told
    (rung,) = decisions(sweep)
    assert rung["steps"] == 10 and list(rung["scores"]) == ["bad", "lr0", "lr1", "lr2"]
    assert rung["scores"]["bad"] is None and "bad" in rung["failures"] and len(rung["promoted"]) == 1
    best = max(rung["scores"], key=lambda name: rung["scores"][name] or 0.0)
    assert rung["promoted"][0] == best and "lr0" not in rung["promoted"]

    ended = start(program, sweep).wait(600)
    for _ in range(20):  # a run that the killed command has started may hold its folder for a while
        if "the best:" in ended.out:
            break
        time.sleep(1)
        ended = start(program, sweep).wait(600)
    assert "rung 1 of 2" not in ended.out
    (winner,) = decisions(sweep)[-1]["scores"]
    assert f"the best: {folder / winner}" in ended.expect(0).out
    assert [one["steps"] for one in decisions(sweep)] == [10, 40]
    assert records(folder / winner)[-1]["status"] == "completed"
    assert records(folder / "lr0")[-1]["status"] == "stopped" and records(folder / "lr0")[-1]["step"] == 10

    lr = next(point["optim.lr"] for point in POINTS if point["name"] == winner)
    undisturbed = folder.with_name("undisturbed")
    train(undisturbed, f"optim.lr={lr}", "train.steps=40", "validate.every=10", "checkpoint.every=5").expect(0)
    assert_same_run(folder / winner, undisturbed)

    shown = program.warm(COMMANDS, "status", folder).wait().expect(1).out
    assert "stopped at rung 1 of 2: score" in shown and "rank 3 of 4" in shown and "trained to the end" in shown
    assert f"| {lr} " in program.warm(COMMANDS, "compare", folder).wait().expect(0).out  # rows are settings
    again = start(program, sweep).wait(600).expect(0)
    assert "started" not in again.out and f"the best: {folder / winner}" in again.out

    sweep.write_text(sweep.read_text().replace("factor: 4", "factor: 3"))
    assert "another search (different: factor)" in start(program, sweep).wait(600).expect(2).err


@needs("optuna", "search")
@pytest.mark.long
def test_a_search_with_tpe_that_is_killed_proposes_the_same_trials_again(
    program: Program, sweep: Path, config_file: Path
) -> None:
    search = {"min_steps": 10, "max_steps": 20, "factor": 2, "trials": 4, "batch": 2, "sampler": "tpe"}
    space = {"optim.lr": {"log": [1e-4, 1e-1]}, "optim.weight_decay": [0.0, 0.01]}
    fixed = {"validate.every": 10, "checkpoint.every": 5}
    raw = {"name": "s", "base": str(config_file), "set": fixed, "search": {**search, "space": space}}
    sweep.write_text(yaml.safe_dump(raw))
    folder = sweep.parent / "runs/s"
    proposed = folder / "search_002.json"

    first = start(program, sweep)
    limit = time.monotonic() + 600
    while not proposed.exists() and first.status is None and time.monotonic() < limit:
        time.sleep(0.01)
    first.send(signal.SIGKILL)  # the driver alone; runs that it has started end by themselves
    told = first.wait(600)
    assert proposed.exists(), told
    assert [one["steps"] for one in decisions(sweep)] == [10, 20]
    before = json.loads(proposed.read_text())
    assert list(before["trials"]) == ["trial002", "trial003"] and before["rungs"] == []
    proposed.unlink()  # so that the trials are proposed again, from the scores of the first ones

    for _ in range(20):  # a run that the killed command has started may hold its folder for a while
        ended = start(program, sweep).wait(600)
        if "the best:" in ended.out:
            break
        time.sleep(1)
    ended.expect(0)
    after = json.loads(proposed.read_text())
    assert after["trials"] == before["trials"] and [one["steps"] for one in after["rungs"]] == [10, 20]
    last = {**decisions(sweep)[-1]["scores"], **after["rungs"][-1]["scores"]}
    assert len(last) == 2
    assert f"the best: {folder / max(last, key=lambda name: last[name])}" in ended.out
    assert all(records(folder / name)[-1]["status"] == "completed" for name in last)
    shown = program.warm(COMMANDS, "status", folder).wait().expect(0).out
    assert all(f"| trial{number:03d} " in shown for number in range(4))
    assert "started" not in start(program, sweep).wait(600).expect(0).out
