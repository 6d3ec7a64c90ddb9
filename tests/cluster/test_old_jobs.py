"""Jobs that an older version queued: their pickles name modules that have moved since."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from fusionseg.cluster.job import Job
from fusionseg.config import dump_config
from fusionseg.runs.job_events import read_events
from fusionseg.runs.records import last_end

# Made by cloudpickle and fusionseg.jobs.job.Job of version 0.1.0, of 2026-11-28; the run's folder is runs/queued.
PICKLED = (
    b"\x80\x05\x95\x8d\x00\x00\x00\x00\x00\x00\x00\x8c\x12fusionseg.jobs.job\x94\x8c\x03Job\x94\x93\x94)\x81\x94}\x94("
    b"\x8c\x03run\x94\x8c\x0bruns/queued\x94\x8c\x08launcher\x94\x8c\x04srun\x94\x8c\x0eranks_per_node\x94K\x01\x8c"
    b"\x0cmax_restarts\x94K\x00\x8c\x0cmax_requeues\x94N\x8c\x08signal_s\x94K<ub."
)


def test_a_job_queued_by_an_older_version_trains_its_run(
    balls: Path, tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs/queued"
    run.mkdir(parents=True)
    config = tiny_config(balls, tmp_path / "runs", name="queued", train={"steps": 2})
    (run / "config.yaml").write_text(dump_config(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    job = pickle.loads(PICKLED)
    assert job == Job("runs/queued", "srun", 1, 0, None, 60)
    job()
    end = last_end(run)
    assert end is not None and (end["status"], end["step"]) == ("completed", 2)
    assert [event["event"] for event in read_events(run)] == ["started", "finished"]
