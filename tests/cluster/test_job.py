"""What a job decides at its end."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from fusionseg.cluster.job import Job
from fusionseg.runs.job_events import JobEvent, count_last_requeues, read_events, write_event
from fusionseg.runs.records import last_end

NEARLY_OVER = "JobId=7 JobState=RUNNING TimeLimit=00:10:00 RunTime=00:08:10 PreemptTime=None"


@pytest.fixture
def end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`end(step)`: a start ends by SIGUSR2 near the time limit, with the run at a step; the last event."""
    scontrol = tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f"#!/bin/sh\necho '{NEARLY_OVER}'\n")
    scontrol.chmod(0o755)
    run = tmp_path / "run"
    monkeypatch.setenv("PATH", f"{scontrol.parent}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SUBMITIT_FOLDER", str(tmp_path))
    job = Job(str(run), "srun", 1, 3, 50, 120)

    def end(step: int | None):
        run.mkdir(exist_ok=True)
        if step is not None:
            record = {"kind": "end", "step": step, "status": "interrupted", "reason": "SIGUSR2"}
            (run / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        job._record_end(0, signal.SIGUSR2, None)
        return read_events(run)[-1]

    return end


def test_a_job_that_never_comes_to_train_is_not_queued_for_ever(end, tmp_path: Path) -> None:
    for _ in range(5):
        assert end(None)["event"] == "requeued"
    last = end(None)
    assert last["event"] == "stopped"
    assert last["reason"].startswith("time limit; not requeued: 5 starts in a row trained no step: raise time in")
    assert (tmp_path / "requeue-7").exists()


def test_one_that_trains_a_little_each_time_is(end) -> None:
    for step in (None, None, None, 10, 10, 10, 20, 20, 20, 20, 30, 40):
        assert end(step)["event"] == "requeued"
    for _ in range(4):
        assert end(40)["event"] == "requeued"
    assert end(40)["event"] == "stopped"


def test_preemptions_and_other_jobs_do_not_count(tmp_path: Path) -> None:
    for job, reason, step in (("6", "time limit", 3), ("7", "time limit", 3), ("7", "preempted", 3)):
        write_event(tmp_path, JobEvent.REQUEUED, job=job, reason=reason, step=step)
    assert count_last_requeues(read_events(tmp_path), "7", "time limit", 3) == 0
    write_event(tmp_path, JobEvent.REQUEUED, job="7", reason="time limit", step=3)
    write_event(tmp_path, JobEvent.STARTED, job="7")
    assert count_last_requeues(read_events(tmp_path), "7", "time limit", 3) == 1
    assert count_last_requeues(read_events(tmp_path), "7", "time limit", 4) == 0
    assert count_last_requeues([], "7", "time limit", 4) == 0


def test_cancelled_job_is_not_requeued(end, tmp_path: Path) -> None:
    write_event(tmp_path / "run", JobEvent.STARTED, job="7")
    assert end(10)["event"] == "requeued"
    write_event(tmp_path / "run", JobEvent.STARTED, job="7")
    write_event(tmp_path / "run", JobEvent.CANCELLED, job="7")
    last = end(20)
    assert last["event"] == "stopped" and "cancelled" in last["reason"]


def test_job_cancelled_before_its_requeued_start_does_not_train(end, tmp_path: Path) -> None:
    """It has no process then that could get a signal."""
    run = tmp_path / "run"
    write_event(run, JobEvent.STARTED, job="7")
    assert end(10)["event"] == "requeued"
    write_event(run, JobEvent.CANCELLED, job="7")
    job = Job(str(run), "srun", 1, 3, 50, 120)  # the run has no configuration: to train it would fail
    for _ in range(2):  # every task of the job
        job()
    assert read_events(run)[-1] | {"time": ""} == {"event": "stopped", "time": "", "job": "7", "reason": "cancelled"}


def test_a_start_that_leaves_no_record_does_not_end_for_the_reason_of_an_earlier_one(end, tmp_path: Path) -> None:
    """`end` sets the environment of a job; this start ends with an error, and has recorded nothing itself."""
    run = tmp_path / "run"
    write_event(run, JobEvent.REFUSED, reason="data.root: does not exist")
    record = {"kind": "end", "step": 4, "status": "failed", "reason": "the loss is not finite", "total_s": 1.0}
    (run / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    job, before = Job(str(run), "srun", 1, 3, 50, 120), last_end(run)

    def reason_of_a_start(*events: JobEvent) -> str:
        write_event(run, JobEvent.STARTED, job="7")
        for event in events:
            write_event(run, event, reason="model.name: is wrong")
        job._record_end(1, 0, before)
        return str(read_events(run)[-1]["reason"])

    assert reason_of_a_start() == "ended without a record: see its log"
    assert reason_of_a_start(JobEvent.REFUSED) == "model.name: is wrong"
    (run / "metrics.jsonl").write_text(json.dumps(record | {"total_s": 2.0}) + "\n")
    assert reason_of_a_start() == "the loss is not finite"


def test_a_run_that_hung_is_queued_again_until_it_hangs_at_one_step(end, tmp_path: Path) -> None:
    """`end` sets the environment of a job. The watchdog ends the start with exit status 1."""
    run = tmp_path / "run"
    run.mkdir()
    job = Job(str(run), "torchrun", 1, 3, 50, 120)

    def hung(step: int, reason: str) -> dict:
        record = {"kind": "end", "step": step, "status": "hung", "reason": reason}
        (run / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        job._record_end(1, 0, None)
        return read_events(run)[-1]

    last = hung(40, "no progress for 900 s: waiting for rank 3 (node2, process 7)")
    assert (last["event"], last["reason"], last["step"]) == ("requeued", "no rank made progress", 40)
    assert (tmp_path / "requeue-7").exists()
    for number in range(4):
        assert hung(41, f"no progress for {900 + number} s")["event"] == "requeued"
    assert hung(41, "no progress for 900 s")["event"] == "requeued"
    last = hung(41, "no progress for 900 s")
    assert (
        last["event"] == "stopped" and "5 starts in a row hung at the same step: see the folder hangs" in last["reason"]
    )
