"""Sweeps on this machine, without a scheduler."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import yaml
from faults.catalogue import assert_seen

from end_to_end.conftest import Train
from end_to_end.runs import COMMANDS, Program, assert_same_run, records, wait_for_step
from fusionseg.runs.accounts.history import read_changes

LOCAL = "{cluster: local, gpus_per_node: 0}"


@pytest.fixture
def sweep(tmp_path: Path, config_file: Path) -> Path:
    """A sweep of two runs."""
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump({"name": "two", "base": str(config_file), "grid": {"seed": [0, 1]}}))
    (tmp_path / "local.yaml").write_text(LOCAL)
    return file


def arguments(sweep: Path, *overrides: str) -> tuple[str, ...]:
    folder = sweep.parent
    return ("submit", str(sweep), "--cluster", str(folder / "local.yaml"), f"output={folder}/runs", *overrides)


def test_local_sweep_trains_all_runs_once(program: Program, sweep: Path) -> None:
    folder = sweep.parent / "runs/two"
    ended = program.warm(COMMANDS, *arguments(sweep, "cluster.parallel=2")).wait().expect(0)
    assert "[2 of 2]" in ended.out
    assert {run.name for run in folder.iterdir()} >= {"seed0", "seed1", "jobs"}
    assert all(records(folder / name)[-1]["status"] == "completed" for name in ("seed0", "seed1"))

    again = program.warm(COMMANDS, *arguments(sweep)).wait().expect(0)
    assert "2 runs, 0 to submit" in again.out
    assert "started" not in again.out
    longer = program.warm(COMMANDS, *arguments(sweep, "train.steps=20", "--extend"), "--dry-run").wait().expect(0)
    assert "2 runs, 2 to do" in longer.out
    assert "| continue | extended from step" in longer.out and "-> 20" in longer.out
    assert "2 finished" in program.warm(COMMANDS, "status", folder).wait().expect(0).out
    assert "± " in program.warm(COMMANDS, "compare", folder).wait().expect(0).out


@pytest.mark.long
def test_finished_runs_of_a_sweep_are_extended(program: Program, sweep: Path) -> None:
    folder = sweep.parent / "runs/two"
    program.warm(COMMANDS, *arguments(sweep, "cluster.parallel=2")).wait(600).expect(0)
    longer = arguments(sweep, "train.steps=20", "cluster.parallel=2", "--extend")
    program.warm(COMMANDS, *longer).wait(600).expect(0)
    for name in ("seed0", "seed1"):
        assert records(folder / name)[-1]["step"] == 20
        assert [change.changes[0].partition(":")[0] for change in read_changes(folder / name)] == ["train.steps"]
    assert "2 runs, 0 to submit" in program.warm(COMMANDS, *longer).wait(600).expect(0).out


@pytest.mark.fault("local-sweep-interrupted")
def test_interrupted_sweep_resumes(program: Program, sweep: Path, train: Train) -> None:
    """The active run saves and ends; the waiting run does not start."""
    folder = sweep.parent / "runs/two"
    long = ("train.steps=200", "checkpoint.every=50", "validate.every=100")
    command = arguments(sweep, *long, "cluster.parallel=1")
    started = program.warm(COMMANDS, *command)
    wait_for_step(folder / "seed0", 10, [started])
    started.send(signal.SIGINT)
    started.wait().expect(0)
    assert records(folder / "seed0")[-1]["status"] == "interrupted"
    assert not (folder / "seed1/metrics.jsonl").exists()
    shown = program.warm(COMMANDS, "status", folder).wait().expect(0).out
    assert "1 stopped, 1 waiting" in shown
    assert_seen("local-sweep-interrupted", run=folder / "seed0", shown=shown)

    resumed = program.warm(COMMANDS, *command).wait().expect(0)
    assert "| continue | left at step" in resumed.out
    assert records(folder / "seed0")[-1]["status"] == "completed"

    undisturbed = folder.with_name("undisturbed")
    train(undisturbed, *long, "seed=0").expect(0)
    assert_same_run(folder / "seed0", undisturbed)


def test_cancel_ends_the_active_run(program: Program, sweep: Path) -> None:
    folder = sweep.parent / "runs/two"
    long = ("train.steps=100000", "cluster.parallel=1")
    started = program.warm(COMMANDS, *arguments(sweep, *long))
    wait_for_step(folder / "seed0", 10, [started])
    assert "1 running, 1 waiting" in program.warm(COMMANDS, "status", folder).wait().expect(0).out
    second = program.warm(COMMANDS, *arguments(sweep, *long)).wait().expect(2)
    assert "is being submitted by another process" in second.err
    assert "seed0 (process " in program.warm(COMMANDS, "cancel", folder / "seed0").wait().expect(0).out
    wait_for_step(folder / "seed1", 10, [started])
    started.send(signal.SIGTERM)
    started.wait().expect(0)
    assert {records(folder / name)[-1]["reason"] for name in ("seed0", "seed1")} == {"SIGTERM"}


def test_two_ranks_by_torchrun(program: Program, sweep: Path) -> None:
    folder = sweep.parent / "runs/two"
    own = ("cluster.tasks_per_node=2", "train.global_batch=2", "train.micro_batch=1")
    program.warm(COMMANDS, *arguments(sweep, *own)).wait().expect(0)
    environment = yaml.safe_load((folder / "seed0/environment.json").read_text())
    assert environment["world_size"] == 2


@pytest.mark.fault("point-of-a-local-sweep-fails")
def test_failed_run_does_not_stop_the_others(program: Program, sweep: Path) -> None:
    folder = sweep.parent / "runs/two"
    bad = {"name": "bad", "optim.lr": 1e30, "train.precision": "fp32", "train.max_skipped": 2, "train.steps": 50}
    points = [bad, {"name": "good"}]
    sweep.write_text(yaml.safe_dump({**yaml.safe_load(sweep.read_text()), "points": points, "grid": {"seed": [0]}}))
    assert_seen("point-of-a-local-sweep-fails", program.warm(COMMANDS, *arguments(sweep)).wait())
    shown = program.warm(COMMANDS, "status", folder).wait().expect(1).out
    assert "1 failed, 1 finished" in shown
    assert "stopped: " in shown.split("1 failed, 1 finished")[1]


def test_impossible_sweep_is_refused_before_any_run_starts(program: Program, sweep: Path) -> None:
    told = program.warm(COMMANDS, *arguments(sweep, "cluster.tasks_per_node=3")).wait().expect(2)
    assert "train.global_batch" in told.err and "3 ranks" in told.err
    told = program.warm(COMMANDS, *arguments(sweep, "cluster.gpus_per_node=4", "train.global_batch=4")).wait().expect(2)
    assert "takes 4 GPUs (gpus_per_node), and this machine has 0" in told.err
    told = program.warm(COMMANDS, *arguments(sweep, f"data.root={sweep.parent}/nowhere")).wait().expect(2)
    assert "nowhere" in told.err
    assert not (sweep.parent / "runs").exists()
