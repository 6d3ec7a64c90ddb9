"""Submission where something fails: jobs are on record, or cancelled, and the user is told. SLURM's commands are
stand-ins that say what SLURM would, and sabotage."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from end_to_end.runs import Ended
from faults.catalogue import assert_seen

from fusionseg.cli import main
from fusionseg.config import RunConfig, dump_config
from fusionseg.runs.job_events import JobEvent, read_events
from fusionseg.utils.locks.folder_lock import FolderLock

Submit = Callable[..., tuple[int, str, str]]


@pytest.fixture
def submit(
    tmp_path: Path,
    balls: Path,
    tiny_config: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Submit:
    """`submit(sbatch, *words)`: submit two runs with this shell script as sbatch; status, output, errors.

    `calls` in the folder has the calls of scancel.
    """
    (tmp_path / "base.yaml").write_text(dump_config(tiny_config(balls, tmp_path / "runs")))
    (tmp_path / "two.yaml").write_text(yaml.safe_dump({"name": "two", "base": "base.yaml", "grid": {"seed": [0, 1]}}))
    (tmp_path / "cluster.yaml").write_text("{cluster: slurm, gpus_per_node: 0}")
    commands = tmp_path / "bin"
    commands.mkdir()

    def place(name: str, script: str) -> None:
        (commands / name).write_text(f"#!/bin/sh\n{script}\n")
        (commands / name).chmod(0o755)

    place("sinfo", "echo slurm 23")
    place("squeue", "")
    place("scontrol", "exit 1")
    place("scancel", f'echo "$@" >> {tmp_path}/calls')
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")

    def start(sbatch: str, *words: str) -> tuple[int, str, str]:
        place("sbatch", f'[ "$1" = --test-only ] && exit 0\n{sbatch}')
        command = ["submit", str(tmp_path / "two.yaml"), "--cluster", str(tmp_path / "cluster.yaml"), *words]
        status = main(command)
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return start


def events(tmp_path: Path, seed: int) -> list[tuple[str, str]]:
    return [(event["event"], event["job"]) for event in read_events(tmp_path / f"runs/two/seed{seed}")]


def test_jobs_are_on_record_and_named(submit: Submit, tmp_path: Path) -> None:
    status, out, _ = submit("echo Submitted batch job 77")
    assert status == 0
    assert "submitted 2 runs as job 77; see: fusionseg status" in out
    assert [events(tmp_path, seed) for seed in (0, 1)] == [[("submitted", "77_0")], [("submitted", "77_1")]]


@pytest.mark.fault("job-not-recorded")
def test_jobs_that_cannot_be_recorded_are_cancelled(submit: Submit, tmp_path: Path) -> None:
    ledger = tmp_path / "runs/two/seed1/jobs.jsonl"
    status, out, err = submit(f"rm {ledger}; mkdir {ledger}; echo Submitted batch job 77")
    assert "submitted" not in out
    assert_seen("job-not-recorded", Ended(status, out, err))
    assert f"submission failed: {ledger}: is no file" in err
    assert "Traceback" not in err
    assert (tmp_path / "calls").read_text() == "77\n"
    assert events(tmp_path, 0) == [("submitted", "77_0"), ("cancelled", "77")]
    ledger.rmdir()
    assert submit("echo Submitted batch job 78")[0] == 0
    assert events(tmp_path, 1) == [("submitted", "78_1")]


def test_a_failure_of_submitit_after_sbatch_cancels_too(submit: Submit, tmp_path: Path) -> None:
    """It cannot move its own files: their folder is gone."""
    status, _, err = submit(
        f"rm -r {tmp_path}/runs/two/jobs; touch {tmp_path}/runs/two/jobs; echo Submitted batch job 77"
    )
    assert status == 2
    assert "job 77 could not be recorded: it has been cancelled" in err and "Traceback" not in err
    assert (tmp_path / "calls").read_text() == "77\n"
    assert not (tmp_path / "runs/two/seed0/config.yaml").exists()


def test_a_job_that_cannot_be_cancelled_either_is_named(submit: Submit, tmp_path: Path) -> None:
    ledger = tmp_path / "runs/two/seed0/jobs.jsonl"
    (tmp_path / "bin/scancel").write_text("#!/bin/sh\necho no controller >&2; exit 1\n")
    status, _, err = submit(f"rm {ledger}; mkdir {ledger}; echo Submitted batch job 77")
    assert status == 2
    assert "job 77 is in the queue but not recorded (scancel 77: no controller): cancel it by hand: scancel 77" in err


def test_an_answer_of_sbatch_without_a_number(submit: Submit) -> None:
    status, _, err = submit("echo Queued: 77")
    assert status == 2
    assert "the jobs may be in the queue: see squeue --me, and cancel them" in err and "Queued: 77" in err


def test_what_cannot_be_recorded_is_not_submitted(submit: Submit, tmp_path: Path) -> None:
    (tmp_path / "runs/two/seed1/jobs.jsonl").mkdir(parents=True)
    status, _, err = submit(f"touch {tmp_path}/submitted; echo Submitted batch job 77")
    assert status == 2
    assert "jobs.jsonl: is no file" in err
    assert not (tmp_path / "submitted").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_comes_after_the_record(submit: Submit, tmp_path: Path, number: signal.Signals) -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(number, interrupt)
    try:
        status, out, err = submit(f"kill -{number.value} {os.getpid()}; sleep 0.2; echo Submitted batch job 77")
    finally:
        signal.signal(number, before)
    assert status == 1
    assert "submitted 2 runs as job 77" in out and "interrupted" in err
    assert events(tmp_path, 1) == [("submitted", "77_1")]


def test_arrays_beyond_the_limit_of_slurm(submit: Submit, tmp_path: Path) -> None:
    """The second array is refused: the first one stays on record, and the same command submits the rest."""
    (tmp_path / "bin/scontrol").write_text("#!/bin/sh\necho 'MaxArraySize            = 1'\n")
    count = f"n=$(ls {tmp_path}/bin/n* 2>/dev/null | wc -l); touch {tmp_path}/bin/n$n"
    status, out, err = submit(f"{count}; [ $n = 1 ] && echo QOSMaxSubmitJobPerUserLimit >&2 && exit 1; echo job 7$n")
    assert status == 2
    assert "submitted 1 run as job 70" in out
    assert "QOSMaxSubmitJobPerUserLimit (1 of 2 runs are in the queue; submit again for the others)" in err
    assert events(tmp_path, 0) == [("submitted", "70")] and events(tmp_path, 1) == []
    assert [(tmp_path / f"runs/two/seed{seed}/config.yaml").exists() for seed in (0, 1)] == [True, False]
    (tmp_path / "bin/squeue").write_text("#!/bin/sh\necho 70 RUNNING None\n")
    status, out, _ = submit("echo job 79")
    assert status == 0 and "2 runs, 1 to submit" in out
    assert events(tmp_path, 1) == [("submitted", "79")]


def test_a_time_limit_hardly_longer_than_a_start_is_warned_of(submit: Submit, tmp_path: Path) -> None:
    """Without a measurement a minute counts; else the times of the runs' earlier starts."""
    (tmp_path / "cluster.yaml").write_text("{cluster: slurm, gpus_per_node: 0, time: '00:05:00', signal_s: 121}")
    _, _, err = submit("", "--dry-run")
    assert "a job of 00:05:00 has 119 s before its signal" in err
    assert "a start takes 60 s (not measured yet): raise time" in err and "[seed0, seed1]" in err
    assert "warning: time" not in submit("", "--dry-run", "cluster.time='00:06:00'")[2]

    run = tmp_path / "runs/two/seed1"
    run.mkdir(parents=True)
    times = {"time": "2026-01-01T00:01:30+00:00", "began": "2026-01-01T00:00:00+00:00"}
    start = {"event": "start", **times, "step": 0, "ranks": 1, "hosts": [], "devices": []}
    (run / "history.jsonl").write_text(json.dumps(start) + "\n")
    records = [{"kind": "train", "step": 2, "step_s": 20.0}, {"kind": "val", "step": 2, "val_s": 130.0}]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    _, _, err = submit("", "--dry-run", "cluster.time='00:06:00'")
    assert "a start takes 90 s (measured in seed1), and the 2 steps to the first checkpoint 40 s: raise time" in err
    assert "signal_s: 121 s are less than a validation and a save together, 130 s (measured in seed1)" in err
    assert "warning: time" not in submit("", "--dry-run", "cluster.time='00:08:00'")[2]


# -- --dry-run -----------------------------------------------------------------------------------------------


def test_a_dry_run_leaves_nothing(submit: Submit, tmp_path: Path) -> None:
    status, out, _ = submit("exit 3", "--dry-run")
    assert status == 0
    assert "2 runs, 2 to do" in out and "#SBATCH --array=0-1%2" in out and "was not asked" not in out
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_refuses_a_sweep_that_is_being_submitted(submit: Submit, tmp_path: Path) -> None:
    (tmp_path / "runs/two/jobs").mkdir(parents=True)
    lock = FolderLock(tmp_path / "runs/two/jobs")
    lock.acquire()
    status, _, err = submit("", "--dry-run")
    lock.release()
    assert status == 2 and "two: is being submitted by another process: wait for it" in err
    assert submit("", "--dry-run")[0] == 0


def test_a_dry_run_asks_slurm(submit: Submit, tmp_path: Path) -> None:
    (tmp_path / "bin/sinfo").write_text("#!/bin/sh\necho no controller >&2; exit 1\n")
    said = [submit("", *words) for words in (("--dry-run",), ())]
    assert [status for status, _, _ in said] == [2, 2]
    assert all("sinfo --version: no controller" in err for _, _, err in said)


def test_a_dry_run_without_slurm_says_that_it_was_not_asked(
    submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    status, out, _ = submit("", "--dry-run")
    assert status == 0
    assert "SLURM is not installed here (no sinfo), so it was not asked" in out
    assert submit("")[0] == 2


def test_a_dry_run_refuses_a_folder_that_cannot_be_written(submit: Submit, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    said = [submit("", *words) for words in (("--dry-run",), ())]
    assert [status for status, _, _ in said] == [2, 2]
    assert all(f"{tmp_path}/runs" in err for _, _, err in said)


def test_a_dry_run_refuses_devices_that_are_not_there(submit: Submit, tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("{cluster: local, gpus_per_node: 64}")
    said = [submit("", "train.global_batch=64", "train.micro_batch=1", *words) for words in (("--dry-run",), ())]
    assert [status for status, _, _ in said] == [2, 2]
    assert all("a run takes 64 GPUs (gpus_per_node), and this machine has " in err for _, _, err in said)


def test_a_run_that_is_killed_has_failed_although_an_earlier_start_was_interrupted(
    submit: Submit, tmp_path: Path
) -> None:
    (tmp_path / "bin/killed").write_text("#!/bin/sh\nkill -9 $$\n")
    (tmp_path / "bin/killed").chmod(0o755)
    (tmp_path / "cluster.yaml").write_text(f"{{cluster: local, gpus_per_node: 0, python: {tmp_path}/bin/killed}}")
    for seed in (0, 1):
        records = tmp_path / f"runs/two/seed{seed}/metrics.jsonl"
        records.parent.mkdir(parents=True)
        records.write_text('{"kind": "end", "step": 8, "status": "interrupted", "reason": "SIGTERM"}\n')
    status, out, _ = submit("")
    assert status == 1 and out.count("failed (ended without a record, exit status -9: see its log)") == 2
    assert events(tmp_path, 0)[-1] == (JobEvent.FAILED, "local")


def test_a_taken_folder_needs_another_output(submit: Submit, tmp_path: Path) -> None:
    """The names of the runs follow from the sweep."""
    (tmp_path / "runs/two/seed0/metrics.jsonl").mkdir(parents=True)
    status, _, err = submit("", "--dry-run")
    assert status == 2
    assert "seed0/metrics.jsonl: is no file: move it away, or choose another output" in err
