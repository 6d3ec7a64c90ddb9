"""A run folder that is moved, removed or replaced while the run trains: the next save ends the training."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
from faults.catalogue import assert_seen

from end_to_end.conftest import arguments
from end_to_end.runs import TRAIN, Program, Started, records, snapshot, wait_for_step
from fusionseg.utils.locks.owner import OWNER

OPTIONS = ("train.steps=100000", "validate.every=100000", "checkpoint.every=20")


@pytest.fixture
def begun(program: Program, config_file: Path, tmp_path: Path) -> Started:
    """A run in `run` that has saved a checkpoint."""
    process = program.warm(TRAIN, *arguments(config_file, tmp_path / "run", *OPTIONS))
    wait_for_step(tmp_path / "run", 25, [process])
    return process


@pytest.mark.fault("folder-moved")
def test_moved(begun: Started, program: Program, config_file: Path, tmp_path: Path) -> None:
    run, moved = tmp_path / "run", tmp_path / "elsewhere"
    run.rename(moved)
    ended = begun.wait()

    assert_seen("folder-moved", ended, moved)
    assert f"stopped: {run}: the run folder was moved to {moved} while the run trained" in ended.err
    last = max((moved / "checkpoints").glob("step_*.pt"))
    assert f"the last checkpoint is {last}: move the folder back and start the run again" in ended.err
    assert not run.exists()
    end = records(moved)[-1]
    assert (end["kind"], end["status"]) == ("end", "failed") and "was moved to" in end["reason"]

    moved.rename(run)
    again = program.warm(TRAIN, *arguments(config_file, run, *OPTIONS))
    limit = time.monotonic() + 60
    while not again.err.exists() or f"resuming from {run}/checkpoints/{last.name}" not in again.err.read_text():
        assert again.status is None and time.monotonic() < limit
        time.sleep(0.05)
    again.send(signal.SIGKILL)
    again.wait()


@pytest.mark.fault("folder-replaced")
def test_removed_and_replaced(begun: Started, tmp_path: Path) -> None:
    run = tmp_path / "run"
    other = tmp_path / "other"
    (other / "checkpoints").mkdir(parents=True)
    (other / "config.yaml").write_text("name: of another run\n")
    run.rename(tmp_path / "removed")
    other.rename(run)
    shutil.rmtree(tmp_path / "removed")
    before = snapshot(run)
    ended = begun.wait()

    assert_seen("folder-replaced", ended)
    assert f"{run}: the run folder was removed, and another folder is in its place while the run trained" in ended.err
    assert f"the last checkpoint was {run}/checkpoints/step_" in ended.err
    assert snapshot(run) == before and not list((run / "checkpoints").iterdir())


@pytest.mark.fault("folder-taken-over")
def test_taken_over(begun: Started, tmp_path: Path) -> None:
    """The records and the history are those of the other process from then on."""
    run = tmp_path / "run"
    (run / OWNER).write_text(json.dumps({"token": "x", "host": "node7", "pid": 12}))
    ended = begun.wait()
    assert_seen("folder-taken-over", ended, run, newest=False)
    assert "taken over by another process (process 12 on node7)" in ended.err and "no end record" in ended.err
    assert records(run)[-1]["kind"] != "end"
    assert [json.loads(line)["event"] for line in (run / "history.jsonl").read_text().splitlines()] == ["start"]
