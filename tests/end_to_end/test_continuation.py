"""Runs that go on with another configuration: `--extend` in their folder, `--branch` in a new one."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

import fusionseg
from end_to_end.conftest import Train, arguments
from end_to_end.runs import (
    COMMANDS,
    TRAIN,
    Program,
    assert_same_run,
    checkpoint,
    records,
    snapshot,
    wait_for_step,
)
from fusionseg.runs.accounts.account import read_account
from fusionseg.runs.accounts.history import read_changes, read_history
from fusionseg.runs.continuation.branch import find_branch, make_branch
from fusionseg.runs.continuation.changes import Continuation
from fusionseg.runs.continuation.extension import record_extension
from fusionseg.runs.early_checks import finished_message
from fusionseg.runs.paths import RunPaths
from fusionseg.runs.run_config import load_run_config, write_run_config

RUN = (
    "train={steps: 6, global_batch: 2, micro_batch: 1, ema: 0.9}",
    "optim={name: sgd, lr: 0.01, weight_decay: 0.001}",
    "schedule={name: constant, warmup: 2}",
    "validate.every=3",
    "checkpoint={every: 4, keep: 9}",
    "log.samples=true",
    "model.dropout=0.1",
)
LONGER = (*RUN, "train.steps=16")
CHANGED = (*LONGER, "optim.lr=0.004", "optim.weight_decay=0.1", "train.micro_batch=2", "schedule.name=cosine")


@pytest.fixture(scope="module")
def short(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 6 steps."""
    run = tmp_path_factory.mktemp("short") / "run"
    train(run, *RUN).expect(0)
    return run


@pytest.fixture(scope="module")
def extended(train: Train, short: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run, extended with other settings, without interruption."""
    run = tmp_path_factory.mktemp("extended") / "run"
    shutil.copytree(short, run)
    said = train(run, *CHANGED, "--extend").expect(0).err
    assert "extended, from step 6: " in said and "optim.weight_decay: 0.001 -> 0.1" in said
    assert "learning rate: 0.01 in step 6 under 6 steps" in said
    return run


def test_a_longer_run_is_that_of_its_steps(train: Train, short: Path, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    shutil.copytree(short, run)
    train(run, *LONGER, "--extend").expect(0)
    train(whole, *LONGER).expect(0)
    assert_same_run(run, whole)


def test_a_killed_extension_continues_exactly(
    program: Program, config_file: Path, train: Train, short: Path, extended: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(short, run)
    command = arguments(config_file, run, *CHANGED)
    process = program.warm(TRAIN, *command, "--extend")
    wait_for_step(run, 9, [process])
    process.send(signal.SIGKILL)
    process.wait()
    assert records(run)[-1]["step"] < 16
    again = program.warm(TRAIN, *command).wait().expect(0)  # the folder has the new configuration: no word is needed
    assert "(step 8 of 16)" in again.err
    assert_same_run(run, extended)
    group = checkpoint(run)["train_step"]["optimizer"]["param_groups"][0]
    assert group["weight_decay"] == 0.1  # the setting of the checkpoint before is not taken over
    (change,) = read_changes(run)
    assert change.step == 6 and change.before["train"]["steps"] == 6 and change.origin is None
    assert {line.partition(":")[0] for line in change.changes} == {
        "optim.lr",
        "optim.weight_decay",
        "schedule.name",
        "train.steps",
        "train.micro_batch",
    }
    assert [start.step for start in read_history(run)] == [0, 6, 8]
    shown = program.warm(COMMANDS, "status", run).wait().expect(0).out
    assert "extended, " in shown and "  train.steps: 6 -> 16" in shown


def test_a_kill_before_the_first_new_step_loses_nothing(
    train: Train, short: Path, extended: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(short, run)
    config = load_run_config(extended)
    with (run / "history.jsonl").open("a") as file:
        file.write('{"event": "start", "ti')  # cut off by a kill
    record_extension(run, config)  # killed here: the folder still has the configuration before
    assert len(read_changes(run)) == 1
    train(run, *RUN).expect(0)
    assert records(run)[-1]["status"] == "completed"
    record_extension(run, config)
    write_run_config(run, config)  # killed here: the checkpoint has the configuration before
    train(run, *CHANGED).expect(0)
    assert_same_run(run, extended)


def test_a_branch_is_the_extension_in_a_new_folder(
    program: Program, config_file: Path, train: Train, short: Path, extended: Path, tmp_path: Path
) -> None:
    before, run = snapshot(short), tmp_path / "branch"
    words = ("--branch", str(short))
    said = train(run, *CHANGED, *words).expect(0).err
    assert f"branch of {short}/checkpoints/step_00000006.pt, from step 6: " in said
    assert_same_run(run, extended)
    assert snapshot(short) == before
    account = read_account(run)
    assert account.repeated_steps == 0 and account.wall_s > 0
    assert account.changes[0].origin == short / "checkpoints/step_00000006.pt"
    shown = program.warm(COMMANDS, "status", run).wait().expect(0).out
    assert f"branch of {short}/checkpoints/step_00000006.pt, " in shown
    assert "this run has finished" in train(run, *CHANGED, *words).expect(0).err  # the same command again

    config = load_run_config(run).model_copy(update={"name": "cut"})
    RunPaths(tmp_path / "cut").checkpoints.mkdir(parents=True)
    make_branch(find_branch(short, config), tmp_path / "cut", config)  # killed here, before the first step
    assert [record["kind"] for record in records(tmp_path / "cut")].count("end") == 0
    assert not finished_message(config, alone=True, continuation=Continuation(branch=short))

    told = train(run, *CHANGED, "--branch", str(extended)).expect(2).err
    assert f"{run}: is a branch of {short}/checkpoints/step_00000006.pt, and not of {extended}" in told
    told = train(short, *CHANGED, *words).expect(2).err
    assert "holds a run already, and --branch begins a new one: choose another name" in told
    shutil.rmtree(run / "checkpoints")
    assert "is a branch of" in train(run, *CHANGED).expect(2).err  # it must not begin at step 0


def test_a_branch_of_two_ranks_from_an_earlier_checkpoint(
    program: Program, config_file: Path, short: Path, tmp_path: Path
) -> None:
    """Without --config the branch has the configuration of the run; the records after the checkpoint are left out."""
    checkpoint_file, run = short / "checkpoints/step_00000004.pt", tmp_path / "branch"
    words = (f"output={tmp_path}", "name=branch", "optim.lr=0.001", "--branch", str(checkpoint_file))
    for rank in program.ranks(2, *words):
        rank.wait().expect(0)
    assert [(record["step"], record["lr"]) for record in records(run, "train")] == [
        (1, 0.005), (2, 0.01), (3, 0.01), (4, 0.01), (5, 0.001), (6, 0.001)
    ]  # fmt: skip
    assert [record["step"] for record in records(run, "val")] == [3, 6]
    assert json.loads((run / "split.json").read_text()) == json.loads((short / "split.json").read_text())


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (LONGER, ("train.steps: 6 -> 16", "--extend (in this folder)", "--branch {run}", "init_from={run}")),
        ((*RUN, "data.patch=[8, 8, 8]"), ("a run keeps data.patch from its beginning", "init_from={run}")),
        ((*LONGER, "data.patch=[8, 8, 8]", "--extend"), ("these values cannot change", "init_from={run}")),
        ((*RUN, "optim={name: adam, lr: 0.01}", "--extend"), ("optim.name: sgd -> adam",)),
        ((*RUN, "train.steps=5", "--extend"), ("train.steps: 5 leaves nothing to train after the 6 steps",)),
        ((*RUN, "optim.lr=0.001", "--extend"), ("train.steps: 6 leaves nothing to train", "(train.steps=12)")),
        ((*RUN, "--extend", "--branch", "x"), ("not allowed with",)),
    ],
    ids=["no word", "no word helps", "data", "optimizer", "fewer steps", "no more steps", "both words"],
)
def test_refused(train: Train, short: Path, tmp_path: Path, settings: tuple[str, ...], parts: tuple[str, ...]) -> None:
    run = tmp_path / "run"
    shutil.copytree(short, run)
    before = snapshot(run)
    told = train(run, *settings).expect(2).err
    for part in parts:
        assert part.format(run=run) in told
    assert snapshot(run) == before


def test_words_of_the_python_functions(short: Path, tmp_path: Path) -> None:
    new = {"output": str(tmp_path), "name": "new"}
    with pytest.raises(fusionseg.UserError, match="there is no run to extend"):
        fusionseg.train(short / "config.yaml", new, extend=True)
    run = fusionseg.train(short / "config.yaml", {**new, "train.steps": 7}, branch=short)
    assert (run.status, run.step) == ("completed", 7)
    run = fusionseg.train(short / "config.yaml", {**new, "train.steps": 8}, extend=True)
    assert (run.status, run.step) == ("completed", 8)
    assert [change.step for change in read_changes(run.folder)] == [6, 7]
    with pytest.raises(fusionseg.UserError, match="give one of them"):
        fusionseg.train(short / "config.yaml", extend=True, branch=short)
