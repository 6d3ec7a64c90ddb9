"""Submission to SLURM through submitit."""

from __future__ import annotations

import math
import shlex
import sys
from typing import Any

from fusionseg.config import dump_config
from fusionseg.errors import UserError
from fusionseg.files import write_text
from fusionseg.jobs.cluster import ClusterConfig
from fusionseg.jobs.job import Job
from fusionseg.jobs.ledger import write_event
from fusionseg.jobs.plan import Planned
from fusionseg.jobs.slurm import call
from fusionseg.jobs.sweep import Sweep, SweepRun

JOBS_FOLDER = "jobs"  # submitit's files and the logs, beside the run folders


def submit(sweep: Sweep, planned: list[Planned], cluster: ClusterConfig) -> list[str]:
    """Submit the runs that are due, as one job array; the jobs' numbers.

    Raises:
        UserError: SLURM is not there or refuses; nothing has been submitted then.
    """
    import submitit

    runs = [entry.run for entry in planned if entry.is_due]
    if not runs:
        return []
    call(["sinfo", "--version"])
    try:
        call(["sbatch", "--test-only"], sbatch_text(sweep, cluster, len(runs)))
    except UserError as error:
        raise UserError(f"SLURM would refuse these jobs: {error}") from None
    folder = sweep.folder / JOBS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    # Who can write here runs code as this user: the jobs unpickle what they find.
    folder.chmod(0o700)
    for run in runs:
        write_run_config(run)
    executor = submitit.SlurmExecutor(
        folder=folder, max_num_timeout=cluster.max_requeues, python=python_command(cluster)
    )
    executor.update_parameters(**parameters(sweep, cluster))
    jobs = executor.submit_array([_job(run, cluster) for run in runs])
    for run, job in zip(runs, jobs, strict=True):
        write_event(
            run.folder,
            "submitted",
            job=job.job_id,
            log=str(job.paths.stdout),
            steps=run.config.train.steps,
            settings=run.settings,
        )
    return [job.job_id for job in jobs]


def sbatch_text(sweep: Sweep, cluster: ClusterConfig, num_runs: int) -> str:
    """The batch script that submitit would submit: a function of its arguments alone."""
    from submitit.slurm.slurm import _make_sbatch_string

    folder = sweep.folder / JOBS_FOLDER
    command = f"{python_command(cluster)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    text: str = _make_sbatch_string(
        command=command,
        folder=folder,
        map_count=num_runs if num_runs > 1 else None,
        **parameters(sweep, cluster),
    )
    return text


def parameters(sweep: Sweep, cluster: ClusterConfig) -> dict[str, Any]:
    """What submitit is told, by the names of its own parameters."""
    ranks = cluster.ranks_per_node
    tasks = ranks if cluster.launcher == "srun" else 1
    cpus = cluster.cpus_per_task * ranks // tasks
    chosen: dict[str, Any] = {
        "job_name": sweep.folder.name,
        "nodes": cluster.nodes,
        "ntasks_per_node": tasks,
        "cpus_per_task": cpus,
        "time": math.ceil(cluster.time_s / 60),
        "signal_delay_s": cluster.signal_s,
        "array_parallelism": cluster.parallel,
        "stderr_to_stdout": True,
        # A rank that dies takes the others with it: they would wait for it. srun does not inherit the CPUs (22.05).
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={cpus}"],
        "additional_parameters": {("requeue" if cluster.requeue else "no-requeue"): True, **cluster.sbatch},
    }
    for key in ("partition", "account", "qos", "constraint", "exclude"):
        if getattr(cluster, key) is not None:
            chosen[key] = getattr(cluster, key)
    if cluster.gpus_per_node:
        kind = f":{cluster.gpu_type}" if cluster.gpu_type else ""
        chosen["gres"] = f"gpu{kind}:{cluster.gpus_per_node}"
    if cluster.memory_gb_per_task is not None:
        chosen["mem"] = f"{math.ceil(cluster.memory_gb_per_task * ranks * 1024)}MB"
    setup = [*cluster.setup, *(f"export {name}={shlex.quote(value)}" for name, value in cluster.environment.items())]
    if setup:
        chosen["setup"] = setup
    return chosen


def python_command(cluster: ClusterConfig) -> str:
    """The interpreter on the nodes, inside the container if there is one."""
    python = shlex.quote(cluster.python or sys.executable)
    return f"{cluster.container} {python}" if cluster.container else python


def write_run_config(run: SweepRun) -> None:
    """The configuration in the run's folder: all that a job needs to know."""
    write_text(run.folder / "config.yaml", dump_config(run.config))


def _job(run: SweepRun, cluster: ClusterConfig) -> Job:
    return Job(
        str(run.folder),
        cluster.launcher,
        cluster.ranks_per_node,
        cluster.max_restarts,
        cluster.max_requeues if cluster.requeue else None,
        cluster.signal_s,
    )
