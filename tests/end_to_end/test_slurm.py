"""Sweeps on a real SLURM: submission, signals, preemption, requeues, loss of a node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from faults.catalogue import assert_seen

from end_to_end.conftest import Train, arguments
from end_to_end.devcluster import PROFILE, DevCluster, is_missing, job_of, last_step, told
from end_to_end.runs import (
    REPOSITORY,
    Ended,
    Program,
    assert_same_run,
    assert_same_training,
    checkpoint,
    records,
    results,
)
from fusionseg.runs.job_events import read_events

pytestmark = pytest.mark.skipif(
    is_missing() and "slurm" not in os.environ.get("FUSIONSEG_REQUIRE", ""),
    reason="no SLURM here, or not root: apt-get install slurmctld slurmd slurm-client munge",
)

TOPOLOGY = (
    "train.steps=20", "train.precision=fp32", "train.micro_batch=1", "train.global_batch=4", "log.samples=true",
    "validate.every=10", "data.samples_per_volume=1", "checkpoint.every=10",
)  # fmt: skip
# Long enough to be interrupted in the middle: at least 5 seconds remain after step 60 or 100.
NUM_STEPS = 500
LONG = (
    f"train.steps={NUM_STEPS}",
    "train.global_batch=2",
    "checkpoint.every=50",
    "validate.every=250",
    "log.every=20",
)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    with DevCluster(tmp_path_factory.mktemp("devcluster") / "cluster", _port(0), max_array=2) as cluster:
        yield cluster


@pytest.fixture
def cluster(started: DevCluster) -> Iterator[DevCluster]:
    yield started
    started.quiet()


@pytest.fixture(scope="module")
def undisturbed(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run, for comparison."""
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(run, *LONG).expect(0)
    return run


@pytest.fixture(scope="module")
def undisturbed_pair(program: Program, config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run on two ranks."""
    run = tmp_path_factory.mktemp("runs") / "undisturbed_pair"
    for rank in program.ranks(2, *arguments(config_file, run, *LONG)):
        rank.wait().expect(0)
    return run


@pytest.fixture
def one_run(tmp_path: Path, config_file: Path) -> Path:
    """A sweep of a single run; `runs/one/only` is its folder."""
    file = tmp_path / "one.yaml"
    file.write_text(yaml.safe_dump({"name": "one", "base": str(config_file), "points": [{"name": "only"}]}))
    return file


def disturb_after(cluster: DevCluster, run: Path, step: int) -> str:
    """Wait until the run has reached a step; return its job."""
    cluster.wait(lambda: last_step(run) >= step)
    assert last_step(run) < NUM_STEPS, "the run ended before it could be interrupted"
    return job_of(run)


def preempt(cluster: DevCluster, one_run: Path, run: Path) -> None:
    """Train in the low partition, preempt the job from the main partition, and wait for the end."""
    output = f"output={run.parents[1]}"
    cluster.submit(one_run, output, *LONG, "cluster.tasks_per_node=1", "cluster.partition=low")
    disturb_after(cluster, run, 60)
    cluster.run("srun", "--partition=main", "--nodes=2", "--exclusive", "sleep", "1")
    cluster.wait_until_empty()


def test_sweep_of_two_runs_on_two_nodes(cluster: DevCluster, train: Train, config_file: Path, tmp_path: Path) -> None:
    """Each run has four ranks, and the samples and losses of a single process."""
    sweep = tmp_path / "sweep.yaml"
    grid = {"model.num_res_units": [1, 2]}
    sweep.write_text(yaml.safe_dump({"name": "two", "base": str(config_file), "grid": grid}))
    folder = tmp_path / "runs/two"
    options = (f"output={tmp_path}/runs", *TOPOLOGY, "cluster.nodes=2", "cluster.tasks_per_node=2")

    assert "2 runs, 2 to submit" in cluster.submit(sweep, *options)
    again = cluster.submit(sweep, *options)
    assert "2 runs, 0 to submit" in again
    assert again.count("| skip ") == 2
    cluster.wait_until_empty()

    shown = cluster.fusionseg("status", folder)
    assert "2 finished" in shown
    assert shown.count("20/20") == 2
    assert "2 runs, 0 to submit" in cluster.submit(sweep, *options)
    table = cluster.fusionseg("compare", folder)
    head = next(line for line in table.splitlines() if line.startswith("|"))  # a busy machine says that it starts
    assert head.split("|")[1].strip() == "model.num_res_units"
    assert len([line for line in table.splitlines() if line.startswith("|")]) == 4

    nodes = {rank["host"] for rank in _ranks(folder / "num_res_units1")}
    assert nodes == {"node1", "node2"}
    alone = tmp_path / "alone"
    assert "1 rank x accumulation 4" in train(alone, *TOPOLOGY).expect(0).err
    assert_same_training(folder / "num_res_units1", alone)


@pytest.mark.fault("time-limit")
@pytest.mark.long  # signals to a job are in the tests below, the reason in tests/cluster/test_job.py
def test_time_limit(cluster: DevCluster, one_run: Path, undisturbed: Path, tmp_path: Path) -> None:
    """SLURM checks time limits every 30 s, and the shortest limit is a minute. So the run is much longer than that, and
    is cancelled after enough steps. SLURM sends the signal up to 30 s early: with 45 s it once came when the job began,
    before bash had its trap."""
    run = tmp_path / "runs/one/only"
    cluster.submit(
        one_run, f"output={tmp_path}/runs", *LONG, "train.steps=1000000", "cluster.tasks_per_node=1",
        "cluster.time='00:01:00'", "cluster.signal_s=20",
    )  # fmt: skip
    # On a busy machine the first signals may come before the training has begun: their events have no step.
    stopped_at = cluster.wait(
        lambda: next((e["step"] for e in read_events(run) if e["event"] == "requeued" and e["step"]), None)
    )
    assert ("requeued", "time limit") in told(run)
    cluster.wait(lambda: last_step(run) > max(stopped_at, NUM_STEPS) + 50)
    cluster.fusionseg("cancel", run)
    cluster.wait_until_empty()

    expected = [record for record in results(undisturbed) if record["kind"] != "end"]
    assert results(run)[: len(expected)] == expected
    steps = [record["step"] for record in records(run, "train")]
    assert steps == sorted(set(steps))
    assert max(steps) > stopped_at
    assert_seen("time-limit", run=run)


@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
@pytest.mark.fault("job-signalled")
def test_signal_leads_to_a_checkpoint_and_a_requeue(
    cluster: DevCluster, one_run: Path, undisturbed_pair: Path, tmp_path: Path, launcher: str
) -> None:
    """Two ranks must stop at the same step."""
    run = tmp_path / "runs/one/only"
    own = (f"cluster.launcher={launcher}", "cluster.tasks_per_node=2")
    cluster.submit(one_run, f"output={tmp_path}/runs", *LONG, *own)
    job = disturb_after(cluster, run, 60)
    cluster.run("scancel", "--signal=USR2", job)
    cluster.wait(lambda: "requeued" in dict(told(run)))
    stopped_at = last_step(run)
    # `status` takes longer on a busy machine than the job waits.
    cluster.wait(lambda: "PENDING" in cluster.run("squeue", "-j", job, "-o", "%T"))
    cluster.wait_until_empty()

    assert [event for event, _ in told(run)] == ["submitted", "started", "requeued", "started", "finished"]
    assert 60 <= stopped_at < NUM_STEPS
    assert_same_run(run, undisturbed_pair)
    assert_seen("job-signalled", run=run)


@pytest.mark.fault("one-task-of-an-array-signalled")
def test_one_task_of_an_array_is_requeued(cluster: DevCluster, config_file: Path, tmp_path: Path) -> None:
    """The other task is not affected."""
    sweep = tmp_path / "two.yaml"
    sweep.write_text(yaml.safe_dump({"name": "two", "base": str(config_file), "grid": {"seed": [0, 1]}}))
    runs = [tmp_path / f"runs/two/seed{seed}" for seed in (0, 1)]
    cluster.submit(sweep, f"output={tmp_path}/runs", *LONG, "cluster.tasks_per_node=1")
    cluster.run("scancel", "--signal=USR2", disturb_after(cluster, runs[1], 60))
    cluster.wait_until_empty()

    assert [event for event, _ in told(runs[0])] == ["submitted", "started", "finished"]
    assert [event for event, _ in told(runs[1])] == ["submitted", "started", "requeued", "started", "finished"]
    assert_seen("one-task-of-an-array-signalled", run=runs[1])


def test_resources_of_points_and_an_array_beyond_the_limit(
    cluster: DevCluster, config_file: Path, tmp_path: Path
) -> None:
    """MaxArraySize is 2: three runs are two arrays, which share the limit of three runs at a time; the fourth run has
    two nodes."""
    sweep = tmp_path / "sets.yaml"
    points = [*({"name": name} for name in "abc"), {"name": "wide", "cluster": {"nodes": 2, "partition": "low"}}]
    sweep.write_text(yaml.safe_dump({"name": "sets", "base": str(config_file), "points": points}))
    folder = tmp_path / "runs/sets"
    options = (f"output={tmp_path}/runs", "train.global_batch=2", "cluster.tasks_per_node=1", "cluster.parallel=3")
    shown = cluster.submit(sweep, *options)
    arrays = [job_of(folder / name).partition("_")[0] for name in ("a", "b", "wide")]
    assert f"submitted 4 runs as jobs {', '.join(arrays)};" in shown
    assert job_of(folder / "c") == f"{arrays[1]}_1"
    assert "4 runs, 0 to submit" in cluster.submit(sweep, *options)
    cluster.wait_until_empty()

    assert "4 finished" in cluster.fusionseg("status", folder)
    assert {name: {rank["host"] for rank in _ranks(folder / name)} for name in ("wide",)} == {
        "wide": {"node1", "node2"}
    }
    assert len(_ranks(folder / "a")) == 1


@pytest.mark.long  # the decisions are in test_search.py; here, `submit` waits for jobs of SLURM
def test_a_search_on_two_nodes(cluster: DevCluster, train: Train, config_file: Path, tmp_path: Path) -> None:
    """A trial fails, one stops at the first rung, and the best one is a training that never stopped."""
    sweep = tmp_path / "search.yaml"
    rates = {"bad": 1e30, "slow": 1e-6, "fast": 1e-2}
    fixed = {"validate.every": 10, "checkpoint.every": 5}
    raw = {
        "name": "search",
        "base": str(config_file),
        "set": fixed,
        "search": {"min_steps": 10, "max_steps": 20, "factor": 2},
        "points": [{"name": name, "optim.lr": lr, "train.max_skipped": 2} for name, lr in rates.items()],
    }
    sweep.write_text(yaml.safe_dump(raw))
    folder = tmp_path / "runs/search"
    shown = cluster.submit(sweep, f"output={tmp_path}/runs", "cluster.tasks_per_node=1")
    assert f"the best: {folder / 'fast'}" in shown
    assert cluster.run("squeue", "--noheader") == ""
    assert {name: told(folder / name)[-1][0] for name in rates} == {
        "bad": "failed",
        "slow": "stopped",
        "fast": "finished",
    }
    assert "stopped at rung 1 of 2: score" in told(folder / "slow")[-1][1]
    assert [event for event, _ in told(folder / "fast")].count("submitted") == 2
    undisturbed = tmp_path / "undisturbed"
    settings = ("optim.lr=1e-2", "train.steps=20", "train.max_skipped=2", "validate.every=10", "checkpoint.every=5")
    train(undisturbed, *settings).expect(0)
    assert_same_run(folder / "fast", undisturbed)
    assert "submitted" not in cluster.submit(sweep, f"output={tmp_path}/runs", "cluster.tasks_per_node=1")


@pytest.mark.long  # extensions are in test_continuation.py; here, the word reaches the job
def test_an_extended_sweep(cluster: DevCluster, one_run: Path, train: Train, tmp_path: Path) -> None:
    run = tmp_path / "runs/one/only"
    options = (f"output={tmp_path}/runs", "cluster.tasks_per_node=1", "validate.every=10", "checkpoint.every=5")
    cluster.submit(one_run, *options, "train.steps=20")
    cluster.wait_until_empty()
    assert told(run)[-1][0] == "finished"
    assert "--extend" in cluster.fusionseg(
        "submit", one_run, "--cluster", PROFILE, *options, "train.steps=40", status=2
    )
    cluster.submit(one_run, *options, "train.steps=40", "--extend")
    cluster.wait_until_empty()
    assert told(run)[-1][0] == "finished" and records(run)[-1]["step"] == 40
    assert "extended" in cluster.fusionseg("status", run)


@pytest.mark.fault("requeued-too-often")
def test_requeues_are_limited(cluster: DevCluster, one_run: Path, tmp_path: Path) -> None:
    """A job that gets the signal before it trains counts too."""
    run = tmp_path / "runs/one/only"
    options = (f"output={tmp_path}/runs", *LONG, "cluster.tasks_per_node=1", "cluster.max_requeues=1")
    cluster.submit(one_run, *options)
    for starts in (1, 2):
        cluster.wait(lambda starts=starts: [event for event, _ in told(run)].count("started") == starts)
        cluster.run("scancel", "--signal=USR2", job_of(run))
    cluster.wait_until_empty()

    assert [event for event, _ in told(run)] == ["submitted", "started", "requeued", "started", "stopped"]
    assert "requeued 1 times (max_requeues)" in told(run)[-1][1]
    shown = cluster.fusionseg("status", run)
    assert_seen("requeued-too-often", run=run, shown=shown)


@pytest.mark.fault("requeued-by-hand")
def test_scontrol_requeue(cluster: DevCluster, one_run: Path, undisturbed: Path, tmp_path: Path) -> None:
    """There is no signal: the run resumes from its last regular checkpoint."""
    run = tmp_path / "runs/one/only"
    cluster.submit(one_run, f"output={tmp_path}/runs", *LONG, "cluster.tasks_per_node=1")
    cluster.run("scontrol", "requeue", disturb_after(cluster, run, 100))
    cluster.wait_until_empty()

    reasons = [reason for event, reason in told(run) if event == "requeued"]
    assert len(reasons) == 1
    assert_same_run(run, undisturbed)
    assert_seen("requeued-by-hand", run=run)


@pytest.mark.fault("preempted")
def test_preemption_by_a_higher_partition(
    cluster: DevCluster, one_run: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs/one/only"
    preempt(cluster, one_run, run)

    assert ("requeued", "preempted") in told(run)
    assert_same_run(run, undisturbed)
    assert_seen("preempted", run=run)


@pytest.mark.fault("preempted-by-sigterm")
def test_preemption_without_the_signal(
    one_run: Path, undisturbed: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """SLURM sends SIGTERM and a grace time. A job that exits in that time would not be requeued."""
    run = tmp_path / "runs/one/only"
    with DevCluster(tmp_path_factory.mktemp("devcluster") / "cluster", _port(100), preemption="term") as cluster:
        preempt(cluster, one_run, run)

    assert ("requeued", "preempted") in told(run)
    assert_same_run(run, undisturbed)
    assert_seen("preempted-by-sigterm", run=run)


@pytest.mark.fault("node-lost")
def test_lost_node(cluster: DevCluster, one_run: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs/one/only"
    cluster.submit(one_run, f"output={tmp_path}/runs", *LONG, "cluster.tasks_per_node=1")
    job = disturb_after(cluster, run, 100)
    node = cluster.run("squeue", "-h", "-j", job, "-o", "%N").strip()
    cluster.script("node-off", node)
    cluster.wait_until_empty()

    assert ("requeued", "by SLURM: node failure, preemption or scontrol requeue") in told(run)
    assert_same_run(run, undisturbed)
    assert {rank["host"] for rank in _ranks(run)} == {"node1", "node2"} - {node}
    assert_seen("node-lost", run=run)


@pytest.mark.fault("rank-killed-in-a-job")
def test_killed_worker_of_torchrun(cluster: DevCluster, one_run: Path, tmp_path: Path) -> None:
    """Two nodes with two workers each recover without a requeue: the job is started once."""
    run = tmp_path / "runs/one/only"
    options = (*LONG, "train.global_batch=4", "cluster.nodes=2", "cluster.launcher=torchrun")
    cluster.submit(one_run, f"output={tmp_path}/runs", *options)
    disturb_after(cluster, run, 100)
    workers = subprocess.run(
        ["pgrep", "-f", f"python.* -m fusionseg.cluster.worker {run}"], capture_output=True, text=True, check=True
    )
    last = max(map(int, workers.stdout.split()))
    begun = (run / "environment.json").stat().st_mtime
    os.kill(last, signal.SIGKILL)
    cluster.wait(lambda: (run / "environment.json").stat().st_mtime > begun)  # written at each start
    cluster.wait_until_empty()

    assert told(run)[-1][0] == "finished"
    assert [event for event, _ in told(run)].count("started") == 1
    assert [record["step"] for record in records(run, "train")][-1] == NUM_STEPS
    assert_seen("rank-killed-in-a-job", run=run)


@pytest.mark.fault("cancelled")
def test_cancel_saves(cluster: DevCluster, one_run: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs/one/only"
    options = (f"output={tmp_path}/runs", *LONG, "cluster.tasks_per_node=1")
    cluster.submit(one_run, *options)
    job = disturb_after(cluster, run, 60)
    assert job in cluster.fusionseg("cancel", tmp_path / "runs/one")
    cluster.wait_until_empty()
    assert_seen("cancelled", run=run)
    assert told(run)[-1] == ("stopped", "SIGTERM")
    assert records(run)[-1]["reason"] == "SIGTERM"
    assert checkpoint(run)["step"] == records(run)[-1]["step"]
    assert "no job waits or runs" in cluster.fusionseg("cancel", tmp_path / "runs/one")

    assert "continue" in cluster.submit(one_run, *options)
    cluster.wait_until_empty()
    assert_same_run(run, undisturbed)


@pytest.mark.fault("cancelled-while-it-is-queued-again")
def test_cancel_prevents_a_requeue(cluster: DevCluster, one_run: Path, tmp_path: Path) -> None:
    """The cancel comes between the job's event and the requeue by the batch script."""
    run = tmp_path / "runs/one/only"
    cluster.submit(one_run, f"output={tmp_path}/runs", *LONG, "cluster.tasks_per_node=1")
    job = disturb_after(cluster, run, 40)
    cluster.run("scancel", "--signal=USR2", job)
    cluster.wait(lambda: "requeued" in dict(told(run)))
    cluster.run("scancel", job)
    cluster.wait_until_empty()
    assert [event for event, _ in told(run)] == ["submitted", "started", "requeued"]
    assert_seen("cancelled-while-it-is-queued-again", run=run)


@pytest.mark.fault("failing-run-of-a-job")
def test_reason_of_a_failed_run(cluster: DevCluster, one_run: Path, tmp_path: Path) -> None:
    wrong = ("optim.lr=1e30", "train.max_skipped=2", "train.steps=50")
    cluster.submit(one_run, f"output={tmp_path}/runs", *wrong, "cluster.tasks_per_node=1")
    cluster.wait_until_empty()
    shown = cluster.fusionseg("status", tmp_path / "runs/one", status=1)
    assert "1 failed" in shown
    assert "stopped: " in shown.split("1 failed")[1]
    assert_seen("failing-run-of-a-job", shown, torchrun=True)


@pytest.mark.fault("plain-batch-script-signalled")
def test_plain_batch_script(cluster: DevCluster, config_file: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Without submitit: srun launches the ranks, and the script requeues itself."""
    run = tmp_path / "runs/plain"
    options = ("--ntasks-per-node=1", "--gres=none", "--cpus-per-task=1", f"--output={tmp_path}/log")
    script = REPOSITORY / "slurm/train.sbatch"
    cluster.environ["PYTHON"] = sys.executable
    said = cluster.run("sbatch", *options, str(script), str(run), "--config", str(config_file), *LONG)
    job = said.split()[-1]
    cluster.wait(lambda: last_step(run) >= 60)
    cluster.run("scancel", "--signal=USR2", job)
    cluster.wait(lambda: "PENDING" in cluster.run("squeue", "-j", job, "-o", "%T"))
    assert last_step(run) < NUM_STEPS
    cluster.wait_until_empty()

    assert_same_run(run, undisturbed)
    assert_seen("plain-batch-script-signalled", run=run)


def test_nsight_as_a_batch_job(cluster: DevCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the real sbatch and srun on two nodes; stand-ins for nsys and the training record their calls."""
    writes = '#!/bin/bash\necho "$(basename "$0") $SLURM_PROCID $*" >> "$CALLS.$SLURM_PROCID"\n'
    for name, text in (
        ("nsys", f'{writes}until [[ $1 == */python ]]; do shift; done\nexec "$@"\n'),
        ("python", writes),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{cluster.environ['PATH']}", "CALLS": f"{tmp_path}/calls", "RANKS": "1"}
    for name, value in {**environ, "PYTHON": str(tmp_path / "python")}.items():
        monkeypatch.setitem(cluster.environ, name, value)
    options = ("--nodes=2", "--ntasks-per-node=1", "--gres=none", "--cpus-per-task=1", f"--output={tmp_path}/log")
    run = tmp_path / "runs/profiled"
    cluster.run("sbatch", "--wait", *options, "profiling/nsys.sbatch", str(run), "--config", "x.yaml")
    first, second = ((tmp_path / f"calls.{rank}").read_text().splitlines() for rank in range(2))
    report = f"python 0 profiling/report.py {run}"
    assert [line.split(" --config")[0] for line in first] == ["python 0 -m fusionseg.train", report]
    assert [line.split()[0] for line in second] == ["nsys", "python"]
    assert f"--output={run}/profile/nsys_rank1_node2 --capture-range=cudaProfilerApi" in second[0]
    assert "profile.steps=[100,110] profile.with=nsys profile.ranks=all train.steps=112" in second[1]


def test_doctor_has_a_line_for_each_rank(cluster: DevCluster, tmp_path: Path) -> None:
    doctor = (sys.executable, "-m", "fusionseg", "doctor", "--folder", str(tmp_path))
    page = cluster.run("srun", "--nodes=2", "--ntasks-per-node=2", *doctor)
    lines = [line.split() for line in page.splitlines()]
    assert [line[3].rstrip(",") for line in lines if line[:1] == ["rank"]] == ["node1", "node1", "node2", "node2"]
    assert any(line[:2] == ["all-reduce", "ok"] or line[:2] == ["all-reduce", "poor"] for line in lines)
    assert "in job " in next(line for line in page.splitlines() if line.startswith("SLURM"))


@pytest.mark.fault("job-refused")
def test_jobs_that_slurm_refuses_are_reported_before_submission(
    cluster: DevCluster, one_run: Path, tmp_path: Path
) -> None:
    command = ("submit", one_run, "--cluster", "slurm/clusters/devcluster.yaml", f"output={tmp_path}/runs")
    told = cluster.fusionseg(*command, "train.global_batch=14", "cluster.partition=nowhere", status=2)
    assert_seen("job-refused", Ended(2, told, ""))
    for override, message in (
        ("cluster.nodes=7", "Requested node configuration is not available"),
        ("cluster.constraint=h100", "Invalid feature specification"),
    ):
        told = cluster.fusionseg(*command, "train.global_batch=14", override, status=2)
        assert "SLURM would refuse these jobs" in told
        assert message in told
    assert not (tmp_path / "runs").exists()


def _port(offset: int) -> int:
    """Return the first port of a cluster. Without network namespaces, pytest's workers need different ports."""
    return 17000 + 200 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) + offset


def _ranks(run: Path) -> list[dict[str, str]]:
    environment = yaml.safe_load((run / "environment.json").read_text())
    ranks: list[dict[str, str]] = environment["ranks"]
    return ranks
