"""One sweep of eight runs on a real SLURM, six of which meet a fault of their own while they train at the same time."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from end_to_end.devcluster import DevCluster, is_missing, job_of, last_step, told
from end_to_end.runs import REPOSITORY, assert_same_tensors, checkpoint, records, results
from fusionseg.config import RunConfig, dump_config

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        is_missing() and "slurm" not in os.environ.get("FUSIONSEG_REQUIRE", ""),
        reason="no SLURM here, or not root: apt-get install slurmctld slurmd slurm-client munge iproute2",
    ),
]

NUM_STEPS, MIN_STEP = 400, 40
TIMEOUT_S = 2400.0
# A step takes a quarter of a second without work for the processor: a fault finds each run in the middle.
SLOW_LOSS = """
import time
from torch.nn import functional as F

def slow(logits, labels):
    time.sleep(0.25)
    return F.cross_entropy(logits, labels.squeeze(1))
"""
# Runs of a name are pinned to a node, since their fault takes the whole node.
POINTS = [
    {"name": "calm"},
    {"name": "calm_pair", "cluster.tasks_per_node": 2},
    {"name": "preempted", "cluster.partition": "low", "cluster.sbatch": {"nodelist": "node2"}},
    {"name": "time_limit", "cluster.signal_s": 50},
    {"name": "lost_node", "cluster.sbatch": {"nodelist": "node3"}},
    {"name": "hung_rank", "cluster.tasks_per_node": 2},
    {"name": "full_disk"},
    {"name": "bad_data", "data.root": "damaged", "data.prepared": None},
]


@pytest.fixture
def folder(tmp_path: Path, small_disk: Callable[[str], Path]) -> Iterator[Path]:
    """The folder of the sweep's runs. The folder of the run `full_disk` is a disk of its own."""
    folder = tmp_path / "runs/faults"
    folder.mkdir(parents=True)
    disk, full = small_disk("16m"), folder / "full_disk"
    full.mkdir()
    subprocess.run(["mount", "--bind", str(disk), str(full)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(full)], check=True)


@pytest.fixture
def cluster(folder: Path, tmp_path: Path) -> Iterator[DevCluster]:
    """The nodes see the disks that are mounted before they start."""
    (tmp_path / "slow_loss.py").write_text(SLOW_LOSS)
    with DevCluster(tmp_path / "cluster", 18000, nodes=3, cpus=8, memory=16000, grace=60) as cluster:
        cluster.environ["PYTHONPATH"] = f"{REPOSITORY}:{tmp_path}"
        yield cluster


@pytest.fixture
def sweep(
    make_dataset: Callable[..., Path], balls: Path, tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> Path:
    damaged = make_dataset(tmp_path / "damaged", cases=5, classes=3)
    image = damaged / "imagesTr/case_002.nii.gz"
    image.write_bytes(image.read_bytes()[:900])
    sections: dict[str, Any] = {
        "data": {"prepared": str(tmp_path / "prepared")},
        "train": {"steps": NUM_STEPS, "global_batch": 2, "micro_batch": 1},
        "validate": {"every": 200},
        "checkpoint": {"every": 20, "retry_s": 0},
        "distributed": {"hang_warn_s": 20, "hang_end_s": 40},
    }
    (tmp_path / "base.yaml").write_text(dump_config(tiny_config(balls, tmp_path / "runs", **sections)))
    points = [{**point, "data.root": str(damaged)} if "data.root" in point else point for point in POINTS]
    fields = {"name": "faults", "base": "base.yaml", "set": {"loss.name": "slow_loss:slow"}, "points": points}
    (tmp_path / "faults.yaml").write_text(yaml.safe_dump(fields, sort_keys=False))
    return tmp_path / "faults.yaml"


def test_all_end_as_if_nothing_had_been_or_say_why(
    cluster: DevCluster, sweep: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()

    def note(text: str) -> None:
        with capsys.disabled():
            print(f"{time.monotonic() - began:5.0f} s  {text}", flush=True)

    def has(name: str, event: str) -> bool:
        return event in [kind for kind, _ in told(folder / name)]

    def reach(name: str, step: int = MIN_STEP) -> str:
        """Wait until a run has reached a step, and return its job."""
        cluster.wait(lambda: last_step(folder / name) >= step or has(name, "failed"), TIMEOUT_S, every_s=0.5)
        assert not has(name, "failed"), told(folder / name)
        assert last_step(folder / name) < NUM_STEPS - 40, f"{name} has nearly ended"
        note(f"{name} is at step {last_step(folder / name)}")
        return job_of(folder / name)

    shown = cluster.fusionseg("submit", sweep, "--cluster", _profile(sweep.parent))
    assert "submitted 8 runs as jobs " in shown

    disturbances: dict[str, Callable[[str], object]] = {
        "time_limit": lambda job: _shorten(cluster, job),
        "lost_node": lambda job: cluster.script("node-off", "node3"),
        "full_disk": lambda job: _fill(folder / "full_disk"),
        "preempted": lambda job: cluster.run("srun", "--partition=main", "--nodelist=node2", "--exclusive", "true"),
        "hung_rank": lambda job: os.kill(_process_of(job, rank=1), signal.SIGSTOP),
    }
    for name, disturb in disturbances.items():
        disturb(reach(name))
        note(f"{name}: disturbed")
    cluster.script("node-on", "node3")

    cluster.wait(lambda: has("time_limit", "requeued"), TIMEOUT_S, every_s=0.5)
    cluster.run("scontrol", "update", f"jobid={job_of(folder / 'time_limit')}", "TimeLimit=60")
    note("time_limit: requeued")
    # A run that waits for space goes on by itself; one that has given up is submitted again.
    log = Path(next(event for event in _events(folder / "full_disk") if event.get("log"))["log"])
    cluster.wait(lambda: "No space left" in log.read_text(), TIMEOUT_S, every_s=0.5)
    (folder / "full_disk/filler").unlink()
    note("full_disk: has space again")
    cluster.wait(lambda: not cluster.run("squeue", "--noheader"), TIMEOUT_S, every_s=2)
    for name in [point["name"] for point in POINTS]:
        note(f"{name}: {told(folder / name)}")

    status = cluster.fusionseg("status", folder, status=1)
    note(status)
    if has("full_disk", "failed"):
        assert "No space left on device" in _row(status, "full_disk")
        assert "8 runs, 2 to submit" in cluster.fusionseg("submit", sweep, "--cluster", _profile(sweep.parent))
        cluster.wait(lambda: not cluster.run("squeue", "--noheader"), TIMEOUT_S, every_s=2)
        status = cluster.fusionseg("status", folder, status=1)
        note(status)
    assert "7 finished" in status and "1 failed" in status
    assert "case_002" in _row(status, "bad_data")

    reasons = {name: [reason for event, reason in told(folder / name) if event == "requeued"] for name in disturbances}
    assert reasons["preempted"] == ["preempted"]
    assert reasons["time_limit"] == ["time limit"]
    assert reasons["lost_node"] == ["by SLURM: node failure, preemption or scontrol requeue"]
    assert reasons["hung_rank"] == ["no rank made progress"]
    for name in ("preempted", "time_limit", "lost_node", "full_disk"):
        _assert_undisturbed(folder / name, folder / "calm")
    _assert_undisturbed(folder / "hung_rank", folder / "calm_pair")


def _profile(folder: Path) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(
        '{cluster: slurm, gpus_per_node: 0, cpus_per_task: 1, memory_gb_per_task: 1, time: "01:00:00", parallel: 8,'
        ' environment: {OMP_NUM_THREADS: "1"}}'
    )
    return path


def _events(run: Path) -> list[dict[str, Any]]:
    from fusionseg.runs.job_events import read_events

    return read_events(run)


def _row(status: str, name: str) -> str:
    return next(line for line in status.splitlines() if line.startswith(f"| {name} "))


def _process_of(job: str, rank: int) -> int:
    """The process of a rank of a job that srun has started."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            environ = dict(part.split(b"=", 1) for part in (path / "environ").read_bytes().split(b"\0") if b"=" in part)
        except OSError:
            continue
        array, task = environ.get(b"SLURM_ARRAY_JOB_ID"), environ.get(b"SLURM_ARRAY_TASK_ID", b"")
        own = array + b"_" + task if array else environ.get(b"SLURM_JOB_ID", b"")
        is_task = b"submitit.core._submit" in words and b"srun" not in words[0]
        if is_task and own == job.encode() and environ.get(b"SLURM_PROCID") == str(rank).encode():
            return int(path.name)
    raise AssertionError(f"job {job} has no process of rank {rank}")


def _fill(disk: Path) -> None:
    """Fill a disk to its last byte."""
    with (disk / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(1 << 12))


def _shorten(cluster: DevCluster, job: str) -> None:
    """Set the time limit of a running job to the next full minute but one. SLURM has no shorter ones."""
    shown = cluster.run("scontrol", "--oneliner", "show", "job", job)
    hours, minutes, _ = next(part for part in shown.split() if part.startswith("RunTime="))[8:].split(":")
    cluster.run("scontrol", "update", f"jobid={job}", f"TimeLimit={int(hours) * 60 + int(minutes) + 2}")


def _assert_undisturbed(run: Path, calm: Path) -> None:
    """Assert that a run has the records and the final state of an undisturbed one, bit for bit."""
    ours, theirs = ([r for r in results(path) if r["kind"] != "event"] for path in (run, calm))
    assert [r for r in ours if r["kind"] != "end"] == [r for r in theirs if r["kind"] != "end"]
    assert records(run)[-1]["status"] == "completed"
    ended, expected = checkpoint(run), checkpoint(calm)
    for part in ("model", "train_step"):
        assert_same_tensors(ended[part], expected[part])
