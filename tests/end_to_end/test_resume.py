"""Exact resume: a run that was killed and started again has the results of an uninterrupted one."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
from faults.catalogue import assert_seen

from end_to_end.conftest import Train, arguments
from end_to_end.runs import (
    TRAIN,
    Program,
    assert_same_run,
    checkpoint,
    records,
    results,
    snapshot,
    wait_for_step,
)
from fusionseg.runs.accounts.account import read_account
from fusionseg.runs.accounts.history import read_history

# Accumulation, dropout and every augmentation: all random numbers must continue exactly.
STEPS = 24
RUN = (
    f"train.steps={STEPS}",
    "train.global_batch=4",
    "train.micro_batch=1",
    "train.ema=0.9",
    "validate.every=8",
    "checkpoint.every=4",
    "log.samples=true",
    "data.patch=[32, 32, 32]",
    "model.dropout=0.1",
    "schedule={name: cosine, warmup: 3}",
    "augment={preset: nnunet, noise: {prob: 0.5}, rotate: {prob: 0.5}, elastic: {prob: 0.5}, shift_intensity: {}}",
    "augment.cutout={prob: 0.5}",
)
KILL_AT = 9  # the last checkpoint is of step 8


@pytest.fixture(scope="module")
def uninterrupted(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the settings RUN on one process."""
    run = tmp_path_factory.mktemp("uninterrupted") / "one"
    train(run, *RUN).expect(0)
    return run


@pytest.fixture(scope="module")
def uninterrupted_pair(program: Program, config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the settings RUN on two processes."""
    run = tmp_path_factory.mktemp("uninterrupted") / "two"
    for rank in program.ranks(2, *arguments(config_file, run, *RUN)):
        rank.wait().expect(0)
    return run


@pytest.mark.fault("killed-in-a-step")
def test_killed_run_continues_exactly(
    program: Program, config_file: Path, train: Train, tmp_path: Path, uninterrupted: Path
) -> None:
    run = tmp_path / "run"
    process = program.warm(TRAIN, *arguments(config_file, run, *RUN))
    wait_for_step(run, KILL_AT, [process])
    process.send(signal.SIGKILL)
    assert_seen("killed-in-a-step", process.wait(), run)
    assert KILL_AT <= records(run)[-1]["step"] < STEPS

    resumed = train(run, *RUN).expect(0)

    assert "augment.noise" not in resumed.err  # the noise is that of the same version
    assert_same_run(run, uninterrupted)


@pytest.mark.fault("killed-in-an-accumulation")
def test_kill_during_an_accumulation_loses_that_step_only(
    program: Program, config_file: Path, train: Train, tmp_path: Path
) -> None:
    """A step of four micro-batches is so slow that the kill comes between two of them."""
    slow = (
        "data.patch=[48, 48, 48]",
        "model.channels=[12, 24]",
        "train={steps: 5, global_batch: 4, micro_batch: 1}",
        "checkpoint.every=2",
        "validate.every=5",
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(whole, *slow).expect(0)
    step_s = min(record["step_s"] for record in records(whole, "train"))

    process = program.warm(TRAIN, *arguments(config_file, killed, *slow))
    wait_for_step(killed, 3, [process])
    time.sleep(0.4 * step_s)
    process.send(signal.SIGKILL)
    assert_seen("killed-in-an-accumulation", process.wait(), killed)
    # No checkpoint and no validation follow step 3: the process was in step 4.
    assert records(killed)[-1]["step"] == 3

    train(killed, *slow).expect(0)

    assert_same_run(killed, whole)


@pytest.mark.fault("killed-in-validation")
def test_kill_during_a_validation_repeats_the_validation_only(
    program: Program, config_file: Path, train: Train, tmp_path: Path, uninterrupted: Path
) -> None:
    """The checkpoint of a step is written before its validation, which may take long."""
    run = tmp_path / "run"
    saved = run / "checkpoints" / "step_00000008.pt"
    process = program.warm(TRAIN, *arguments(config_file, run, *RUN))
    while not saved.exists() and process.status is None:
        time.sleep(0.001)
    process.send(signal.SIGKILL)
    assert_seen("killed-in-validation", process.wait(), run)
    assert checkpoint(run, saved.name)["history"] == []

    train(run, *RUN).expect(0)

    assert_same_run(run, uninterrupted)


@pytest.mark.fault("killed-before-the-end-record")
def test_missing_end_record_is_written_at_the_next_start(train: Train, tmp_path: Path, uninterrupted: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    *others, end = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(others))
    assert '"end"' in end

    assert_seen("killed-before-the-end-record", train(run, *RUN), run)

    assert_same_run(run, uninterrupted)


@pytest.mark.parametrize(
    ("number", "fault"),
    [
        pytest.param(signal.SIGTERM, "sigterm", marks=pytest.mark.fault("sigterm")),
        pytest.param(signal.SIGUSR2, "sigusr2", marks=pytest.mark.fault("sigusr2")),
        pytest.param(signal.SIGINT, "ctrl-c", marks=pytest.mark.fault("ctrl-c")),
        pytest.param(signal.SIGHUP, "terminal-closed", marks=pytest.mark.fault("terminal-closed")),
    ],
)
def test_signal_saves_and_ends_the_run(
    program: Program,
    config_file: Path,
    train: Train,
    tmp_path: Path,
    uninterrupted: Path,
    number: signal.Signals,
    fault: str,
) -> None:
    run = tmp_path / "run"
    process = program.warm(TRAIN, *arguments(config_file, run, *RUN))
    wait_for_step(run, KILL_AT, [process])
    process.send(number)
    ended = process.wait()

    assert_seen(fault, ended, run)
    assert f"to go on from here: python -m fusionseg.train --config {config_file} output={run.parent}" in ended.err
    last = records(run)[-1]
    assert (last["kind"], last["status"], last["reason"]) == ("end", "interrupted", number.name)
    assert KILL_AT <= last["step"] < STEPS
    assert checkpoint(run)["step"] == last["step"]
    assert (run / f"checkpoints/step_{last['step']:08d}.pt").exists()

    resumed = train(run, *RUN).expect(0)

    assert f"(step {last['step']} of {STEPS})" in resumed.err  # no step is done twice
    assert_same_run(run, uninterrupted)


@pytest.mark.fault("rank-killed")
def test_two_killed_processes_continue_exactly(
    program: Program, config_file: Path, tmp_path: Path, uninterrupted_pair: Path
) -> None:
    """Under torchrun: first SIGTERM, as from a scheduler; then a worker is killed, as if out of memory."""
    run = tmp_path / "run"
    command = arguments(config_file, run, *RUN)

    torchrun = program.torchrun(2, *command)
    wait_for_step(run, KILL_AT, [torchrun])
    torchrun.send(signal.SIGTERM)
    assert torchrun.wait().status != 0
    last = records(run)[-1]
    assert (last["kind"], last["status"], last["reason"]) == ("end", "interrupted", "SIGTERM")
    assert checkpoint(run)["step"] == last["step"] < STEPS - 5

    torchrun = program.torchrun(2, *command)
    wait_for_step(run, last["step"] + 3, [torchrun])
    worker = next(p for p in psutil.Process(torchrun.pid).children() if p.environ().get("RANK") == "1")
    worker.kill()
    ended = torchrun.wait()
    assert_seen("rank-killed", ended, run, torchrun=True)
    assert records(run)[-1]["step"] < STEPS

    program.torchrun(2, *command).wait().expect(0)

    assert_same_run(run, uninterrupted_pair)


@pytest.mark.fault("signal-to-one-rank")
def test_signal_to_one_rank_stops_all_ranks_at_the_same_step(
    program: Program, config_file: Path, tmp_path: Path, uninterrupted_pair: Path
) -> None:
    run = tmp_path / "run"
    command = arguments(config_file, run, *RUN)
    ranks = program.ranks(2, *command)
    wait_for_step(run, KILL_AT, ranks)
    ranks[1].send(signal.SIGTERM)
    ended = [rank.wait().expect(1) for rank in ranks]
    assert_seen("signal-to-one-rank", ended[0], run)
    assert "Traceback" not in ended[1].err
    last = records(run)[-1]
    assert (last["kind"], last["status"], last["reason"]) == ("end", "interrupted", "SIGTERM")
    assert checkpoint(run)["step"] == last["step"] < STEPS

    for rank in program.ranks(2, *command):
        rank.wait().expect(0)

    assert_same_run(run, uninterrupted_pair)


def forget_end(run: Path) -> None:
    """Take the end record away: a run that says that it has finished is not opened again."""
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert '"kind": "end"' in lines[-1]
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))


@pytest.mark.fault("checkpoint-cut-off")
def test_damaged_checkpoint_is_skipped(train: Train, tmp_path: Path, uninterrupted: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    newest = run / f"checkpoints/step_{STEPS:08d}.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    forget_end(run)
    (run / "checkpoints/.partial-1-step_00000099.pt").write_bytes(b"left over from a kill while writing")

    ended = train(run, *RUN).expect(0)

    assert_seen("checkpoint-cut-off", ended, run)
    assert f"warning: {newest}: damaged checkpoint" in ended.err
    assert f"step_{STEPS - 4:08d}.pt (step {STEPS - 4} of {STEPS})" in ended.err
    assert_same_run(run, uninterrupted)


@pytest.mark.fault("all-checkpoints-damaged")
def test_run_without_an_intact_checkpoint_is_refused(train: Train, tmp_path: Path, uninterrupted: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    for path in (run / "checkpoints").glob("step_*.pt"):
        path.write_bytes(path.read_bytes()[:-100])
    forget_end(run)
    before = (run / "metrics.jsonl").read_bytes()

    assert_seen("all-checkpoints-damaged", train(run, *RUN))
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.fault("finished-run-started-again")
def test_finished_run_does_nothing(train: Train, tmp_path: Path, uninterrupted: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    before = snapshot(run)

    ended = train(run, *RUN)

    assert_seen("finished-run-started-again", ended, run)
    assert f"this run has finished (completed at step {STEPS})" in ended.err
    assert snapshot(run) == before


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        pytest.param(("optim.lr=0.002", "seed=1"), "settings-changed", marks=pytest.mark.fault("settings-changed")),
        pytest.param(("resume=never",), "resume-never", marks=pytest.mark.fault("resume-never")),
    ],
)
def test_refused_start_leaves_the_folder_unchanged(
    train: Train, tmp_path: Path, uninterrupted: Path, overrides: tuple[str, ...], fault: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    before = snapshot(run)

    assert_seen(fault, train(run, *RUN, *overrides))

    assert snapshot(run) == before


def test_keys_that_do_not_change_the_results_may_change(train: Train, tmp_path: Path, uninterrupted: Path) -> None:
    """The run resumes with other checkpoint intervals, memory and logging, and has the same results."""
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    (run / f"checkpoints/step_{STEPS:08d}.pt").unlink()

    train(run, *RUN, "checkpoint.every=3", "cache.memory_fraction=0.4", "log.tensorboard=true").expect(0)

    assert results(run) == results(uninterrupted)


@pytest.mark.fault("case-replaced-between-starts")
def test_changed_data_are_refused(train: Train, tmp_path: Path, balls: Path, uninterrupted: Path) -> None:
    """A case was replaced after the first start."""
    run, changed = tmp_path / "run", tmp_path / balls.name
    shutil.copytree(uninterrupted, run)
    (run / f"checkpoints/step_{STEPS:08d}.pt").unlink()
    shutil.copytree(balls, changed)
    shutil.copy(changed / "labelsTr/case_000.nii.gz", changed / "labelsTr/case_003.nii.gz")
    shutil.copy(changed / "imagesTr/case_000.nii.gz", changed / "imagesTr/case_003.nii.gz")
    before = (run / "metrics.jsonl").read_bytes()

    ended = train(run, *RUN, f"data.root={changed}", f"data.prepared={tmp_path / 'prepared'}")

    assert_seen("case-replaced-between-starts", ended)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_the_other_implementation_continues_a_run(train: Train, tmp_path: Path) -> None:
    """The weights are the same, so that a doubt about the hand-written backward passes needs no second training."""
    run, network = tmp_path / "run", "model={name: resenc_fusion_2_v2, channels: [4, 8, 8, 8], blocks: [1, 1, 1, 1]}"
    settings = (network, "train.steps=4", "checkpoint.every=1", "validate.every=4", "optim={name: sgd, lr: 0.01}")
    said = train(run, *settings).expect(0).err
    assert "implementation: fused (auto on a CPU)" in said
    losses = [record["loss"] for record in records(run, "train")]
    for name in ("step_00000004.pt", "step_00000003.pt", "last.pt"):  # as if it had been killed in step 3
        (run / "checkpoints" / name).unlink()
    said = train(run, *settings, "model.implementation=reference").expect(0).err
    assert "implementation: reference (model.implementation)" in said
    assert json.loads((run / "environment.json").read_text())["implementation"] == "reference"
    again = [record["loss"] for record in records(run, "train")]
    assert len(again) == len(losses) == 4
    assert again == pytest.approx(losses, rel=1e-5)
    dry = train(run, *settings, "--dry-run").expect(0)
    assert "\n             implementation fused (auto on a CPU)\n" in dry.out


def test_history_of_a_run_that_was_killed(program: Program, config_file: Path, tmp_path: Path) -> None:
    """The account knows of steps that a resume removes from the records."""
    run = tmp_path / "run"
    argv = arguments(config_file, run, "train.steps=60", "checkpoint.every=20", "validate.every=60")
    process = program.warm(TRAIN, *argv)
    wait_for_step(run, 27, [process])
    process.send(signal.SIGKILL)
    process.wait()
    program.warm(TRAIN, *argv).wait().expect(0)
    killed, last = read_history(run)
    assert killed.status is None and killed.step == 0 and killed.reached >= 27 and killed.wall_s > 0
    assert (last.step, last.reached, last.status) == (20 if killed.reached < 40 else 40, 60, "completed")
    assert read_account(run).repeated_steps == killed.reached - last.step
