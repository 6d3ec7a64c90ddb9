"""Where runs stand, from folders as they are left behind; and how long it takes to look at many."""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fusionseg.cluster.slurm import expand_job
from fusionseg.cluster.status import last_lines, read_status, to_text
from fusionseg.config import RunConfig, dump_config
from fusionseg.runs.job_events import JobEvent, read_events, write_event
from fusionseg.runs.records import last_records
from fusionseg.utils.errors import UserError

TRAIN = {"kind": "train", "step": 20, "loss": 0.5, "samples_per_s": 7.25}
VAL = {"kind": "val", "step": 20, "dice": 0.81}


@pytest.fixture
def make_run(tmp_path: Path, tiny_config: Callable[..., RunConfig]) -> Callable[..., Path]:
    """`make_run(name, records, (event, fields), ...)`: a run folder."""

    def make(name: str, records: list[dict[str, object]], *events: tuple[str, dict[str, object]]) -> Path:
        run = tmp_path / "sweep" / name
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(dump_config(tiny_config(None, tmp_path / "sweep", name=name)))
        (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        for event, fields in events:
            write_event(run, JobEvent(event), **fields)
        return run

    return make


def end(status: str, reason: str) -> dict[str, object]:
    return {"kind": "end", "step": 20, "status": status, "reason": reason, "best_dice": 0.83}


def submitted(run: Path, log: Path | None = None, steps: int = 20) -> tuple[str, dict[str, object]]:
    return "submitted", {"job": "local", "log": str(log or run / "log"), "steps": steps}


def test_states(make_run: Callable[..., Path], tmp_path: Path) -> None:
    log = tmp_path / "failed.log"
    log.write_text("step 3/20  loss 1\nerror: data.root: nowhere\n")
    started = ("started", {"job": "local", "nodes": "here", "restarts": 0})
    make_run("a", [TRAIN, VAL, end("completed", "step 20")], submitted(tmp_path), started, ("finished", {"step": 20}))
    make_run("b", [TRAIN], submitted(tmp_path), started)
    make_run("c", [], submitted(tmp_path, log), started, ("failed", {"reason": "exit"}))
    make_run("d", [TRAIN, end("interrupted", "SIGTERM")], submitted(tmp_path), ("stopped", {"reason": "SIGTERM"}))
    make_run("e", [TRAIN, VAL])
    make_run("f", [TRAIN, end("interrupted", "SIGINT")])
    make_run("g", [], submitted(tmp_path))
    lock = (make_run("h", [TRAIN], submitted(tmp_path), started) / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    found = {run.path.name: run for run in read_status(tmp_path / "sweep")[0]}
    assert {name: run.state for name, run in found.items()} == {
        "a": "finished",
        "b": "lost",
        "c": "failed",
        "d": "stopped",
        "e": "unfinished",
        "f": "interrupted",
        "g": "waiting",
        "h": "running",
    }
    assert [name for name, run in found.items() if run.is_active] == ["g", "h"]
    assert [name for name, run in found.items() if run.has_failed] == ["b", "c"]
    assert (found["a"].step, found["a"].steps, found["a"].score, found["a"].speed) == (20, 20, 0.83, 7.25)
    assert (found["a"].nodes, found["a"].starts, found["e"].score) == ("here", 1, 0.81)
    text = to_text(list(found.values()))
    assert "1 finished, 1 lost, 1 failed, 1 stopped, 1 unfinished, 1 interrupted, 1 waiting, 1 running" in text
    assert "score: of the training's own validation, on the prepared" in text
    assert text.endswith(f"c ({log}):\n  error: data.root: nowhere")


def test_the_cause_that_only_the_log_has(make_run: Callable[..., Path], tmp_path: Path) -> None:
    """On a full disk a run cannot record its end."""
    log = tmp_path / "12_0_log.out"
    log.write_text("step 3/20  loss 1\nstopped: a record could not be written\nsrun: error: node1: task 0: Exited\n")
    failed = ("failed", {"job": "12", "reason": "ended without a record: see its log"})
    run = make_run("a", [TRAIN], ("submitted", {"job": "12", "log": str(log), "steps": 20}), failed)
    assert read_status(run)[0][0].reason == "ended without a record: stopped: a record could not be written"
    log.write_text("step 3/20  loss 1\n")
    assert read_status(run)[0][0].reason == "ended without a record: see its log"


def test_a_single_run(make_run: Callable[..., Path]) -> None:
    (status,), _ = read_status(make_run("a", [TRAIN]))
    assert (status.path.name, status.step, status.steps) == ("a", 20, 4)


def test_no_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run folder"):
        read_status(tmp_path)


def test_cut_off_lines_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(TRAIN) + "\n" + json.dumps(VAL)[:9])
    assert list(last_records(tmp_path)) == ["train"]
    (tmp_path / "jobs.jsonl").write_text('{"event": "submitted", "job": "1"}\n{"event": "sta')
    assert [event["event"] for event in read_events(tmp_path)] == ["submitted"]


def test_only_the_tail_of_long_records_is_read(tmp_path: Path) -> None:
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step in range(20000):
            file.write(json.dumps({**TRAIN, "step": step}) + "\n")
    assert last_records(tmp_path)["train"]["step"] == 19999


def test_the_lines_that_matter(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "run: here\nstep 1/20  loss 3\nTraceback (most recent call last):\n"
        '  File "x.py", line 3\nValueError: what it was\nstep 2/20  loss 1\nsubmitit INFO (now) - done\n'
    )
    assert last_lines(log) == ["ValueError: what it was"]
    log.write_text("[rank1]: RuntimeError: gloo\nstep 3/20\nslurmstepd-node1: error: Detected 1 oom_kill event\n")
    assert last_lines(log) == ["[rank1]: RuntimeError: gloo", "slurmstepd-node1: error: Detected 1 oom_kill event"]
    log.write_text("error: old\nsubmitit INFO (now) - Starting with JobEnvironment(x)\nhere\n")
    assert last_lines(log) == ["here"]
    log.write_text("one\n\ntwo\nstep 3/20  loss\n")
    assert last_lines(log) == ["one", "two"]
    assert last_lines(tmp_path / "nothing") == []


def test_without_slurm_the_disk_tells(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run("a", [TRAIN], ("submitted", {"job": "12_0", "log": "log", "steps": 20}), ("started", {"job": "12_0"}))
    monkeypatch.setenv("PATH", str(tmp_path))
    (status,), remark = read_status(tmp_path / "sweep")
    assert (status.state, status.reason) == ("unknown", "job 12_0: started")
    assert "SLURM does not answer" in to_text([status], remark)


@pytest.mark.parametrize(
    ("listed", "jobs"),
    [
        ("12", ["12"]),
        ("12_3", ["12_3"]),
        ("12_[3-5,8%2]", ["12_3", "12_4", "12_5", "12_8"]),
        ("12_[0]", ["12_0"]),
        ("12.batch", ["12.batch"]),
    ],
)
def test_jobs_as_sacct_lists_them(listed: str, jobs: list[str]) -> None:
    assert expand_job(listed) == jobs


def test_two_hundred_runs(make_run: Callable[..., Path], tmp_path: Path) -> None:
    """No assertion about time: profiling/README.md says where it is measured."""
    first = make_run("run0", [TRAIN, VAL, end("completed", "step 20")], submitted(tmp_path), ("finished", {"step": 20}))
    for number in range(1, 200):
        shutil.copytree(first, first.with_name(f"run{number}"))
    begun = time.perf_counter()
    assert to_text(read_status(first.parent)[0]).count("finished") == 201
    print(f"200 runs listed in {time.perf_counter() - begun:.2f} s")


def test_a_cancelled_run_is_called_so(make_run: Callable[..., Path], tmp_path: Path) -> None:
    """By the command, or by scancel; and no longer once it is submitted again."""
    interrupted, started = end("interrupted", "SIGTERM"), ("started", {"job": "local", "nodes": "here"})
    cancelled, stopped = (
        ("cancelled", {"job": "local", "reason": "fusionseg cancel"}),
        ("stopped", {"reason": "SIGTERM"}),
    )
    make_run("a", [TRAIN, interrupted], submitted(tmp_path), started, cancelled, stopped)
    make_run("b", [TRAIN, interrupted], submitted(tmp_path), started, ("stopped", {"reason": "cancelled"}))
    make_run("c", [TRAIN, interrupted], submitted(tmp_path), cancelled, submitted(tmp_path), started, stopped)
    states = {run.path.name: (run.state, run.reason) for run in read_status(tmp_path / "sweep")[0]}
    assert states == {
        "a": ("cancelled", "fusionseg cancel"),
        "b": ("cancelled", "cancelled"),
        "c": ("stopped", "SIGTERM"),
    }
