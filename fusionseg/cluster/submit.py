"""Submission to SLURM through submitit."""

from __future__ import annotations

import logging
import math
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from fusionseg.cluster.job import TRAP_LINE, Job, requeue_lines
from fusionseg.cluster.profile import ClusterConfig
from fusionseg.cluster.resources.arrays import JobArray, max_array_size, plan_arrays, with_dependency
from fusionseg.cluster.slurm import call
from fusionseg.cluster.submission import Submission
from fusionseg.cluster.sweep import JOBS_FOLDER, Sweep, SweepRun
from fusionseg.runs.continuation.extension import record_extension
from fusionseg.runs.job_events import JobEvent, make_events_file, read_events, write_event
from fusionseg.runs.paths import RunPaths
from fusionseg.runs.run_config import write_run_config
from fusionseg.runs.trust.known_code import remember_own
from fusionseg.utils.errors import Problems, UserError
from fusionseg.utils.files import writable_folder
from fusionseg.utils.locks.folder_lock import FolderLock, HeldError, is_held

log = logging.getLogger("fusionseg")


def submit(
    sweep: Sweep, submissions: list[Submission], cluster: ClusterConfig, announce: Callable[[list[str]], None]
) -> list[str]:
    """Submit the runs that are due as job arrays, and return the job IDs.

    Jobs that cannot be recorded in their run folders are cancelled: no command would find them later.

    Args:
        sweep: the sweep.
        submissions: the decisions about all its runs; runs that are not due are left out.
        cluster: the cluster profile of the runs without one of their own.
        announce: called with the job IDs, before a signal that arrived during the submission takes effect.

    Raises:
        UserError: SLURM refuses the jobs, or they could not be recorded. The message names jobs that are still queued.
    """
    # submitit reads this variable at its import, and would ask SLURM for that signal in place of SIGUSR2.
    os.environ.pop("SUBMITIT_PREEMPT_SIGNAL", None)
    import submitit

    runs = [submission.run for submission in submissions if submission.is_due]
    submitted: list[list[str]] = []
    with _clean_environment():
        arrays = plan_arrays(runs, cluster, max_array_size())
        new = {path for run in runs if not (path := RunPaths(run.folder).config).exists()}
        try:
            for run in runs:
                remember_own(run.config.to_dict(), write=True)  # the jobs may have another home, in a container
                record_extension(run.folder, run.config)
                write_run_config(run.folder, run.config)
                make_events_file(run.folder)
            with _delayed_signals():
                try:
                    for array in arrays:
                        own = array.cluster
                        if array.after is not None:
                            own = with_dependency(own, submitted[array.after][0].partition("_")[0])
                        submitted.append(_submit_array(sweep, array.runs, own))
                finally:
                    if submitted:
                        announce([job for jobs in submitted for job in jobs])
        except (
            submitit.core.utils.FailedJobError,
            submitit.core.utils.FailedSubmissionError,
            OSError,
            UserError,
        ) as error:
            for path in new - {RunPaths(run.folder).config for array in arrays[: len(submitted)] for run in array.runs}:
                path.unlink(missing_ok=True)
            done = sum(map(len, submitted))
            others = f" ({done} of {len(runs)} runs are in the queue; submit again for the others)" if done else ""
            raise UserError(f"submission failed: {_reason(error)}{others}") from None
    return [job for jobs in submitted for job in jobs]


def _submit_array(sweep: Sweep, runs: Sequence[SweepRun], cluster: ClusterConfig) -> list[str]:
    """Submit runs as one job array, record their jobs, and return the job IDs."""
    import submitit

    executor = submitit.SlurmExecutor(
        folder=sweep.folder / JOBS_FOLDER, max_num_timeout=cluster.max_requeues, python=python_command(cluster)
    )
    executor.update_parameters(**parameters(sweep, cluster))
    with _collected_job_ids() as job_ids:
        try:
            jobs = executor.submit_array([_job(run, cluster) for run in runs])
            for run, job in zip(runs, jobs, strict=True):
                output, steps = str(job.paths.stdout), run.config.train.steps
                write_event(run.folder, JobEvent.SUBMITTED, job=job.job_id, log=output, steps=steps)
        except BaseException:
            _cancel_unrecorded(job_ids, runs)
            raise
    return [job.job_id for job in jobs]


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if lines[0].startswith("Could not make sense"):  # submitit did not find "job 12" in the output of sbatch
        return f"{lines[0]}: the jobs may be in the queue: see squeue --me, and cancel them"
    return lines[-1]


@contextmanager
def _collected_job_ids() -> Iterator[list[str]]:
    """Yield a list that receives the ID of each job as soon as sbatch has printed it.

    A method of submitit's class is replaced meanwhile. A subclass would not do, because submitit makes another executor
    of its own class for an array.
    """
    import submitit

    executor, job_ids = submitit.SlurmExecutor, []
    before = executor.__dict__["_get_job_id_from_submission_command"]

    def note(output: bytes | str) -> str:
        job: str = before.__func__(output)
        job_ids.append(job)
        return job

    executor._get_job_id_from_submission_command = staticmethod(note)
    try:
        yield job_ids
    finally:
        executor._get_job_id_from_submission_command = before


def _cancel_unrecorded(jobs: list[str], runs: Sequence[SweepRun]) -> None:
    """Cancel jobs that could not be recorded, and log their IDs."""
    for job in jobs:
        try:
            call(["scancel", job])
        except UserError as failure:
            log.error("job %s is in the queue but not recorded (%s): cancel it by hand: scancel %s", job, failure, job)
            continue
        log.error("job %s could not be recorded: it has been cancelled", job)
        for run in runs:
            if any(str(event.get("job")).partition("_")[0] == job for event in read_events(run.folder)):
                with suppress(OSError, UserError):
                    write_event(run.folder, JobEvent.CANCELLED, job=job, reason="the submission failed")


def check_submission(sweep: Sweep, arrays: Sequence[JobArray], *, ask: bool) -> None:
    """Make sure that the runs can be submitted, before anything is written.

    Args:
        sweep: the sweep.
        arrays: the job arrays of the runs that are due.
        ask: ask SLURM too; see `ask_slurm`.

    Raises:
        UserError: with all problems: the folder cannot be written, another process submits the sweep, SLURM is not
            installed or would refuse the jobs.
    """
    problems = Problems()
    existing = next(part for part in (sweep.folder, *sweep.folder.parents) if part.exists())
    with problems.collect():
        writable_folder(existing, "output")
    if is_held(sweep.folder / JOBS_FOLDER):
        problems.found.append(f"{sweep.folder}: is being submitted by another process: wait for it")
    if ask:
        asked: list[ClusterConfig] = []
        for array in arrays:
            same = array.cluster.model_copy(update={"parallel": 1})  # the parts of a divided array differ in it alone
            if same not in asked:
                asked.append(same)
                with problems.collect():
                    ask_slurm(sweep, array.cluster, len(array.runs))
    problems.raise_if_any()


def ask_slurm(sweep: Sweep, cluster: ClusterConfig, num_runs: int) -> None:
    """Ask SLURM whether it would accept the jobs (`sbatch --test-only`). Nothing is submitted.

    Args:
        sweep: the sweep.
        cluster: the cluster profile.
        num_runs: number of jobs in the array.

    Raises:
        UserError: SLURM is not installed, or would refuse the jobs.
    """
    call(["sinfo", "--version"])
    with _clean_environment():
        try:
            call(["sbatch", "--test-only"], sbatch_text(sweep, cluster, num_runs))
        except UserError as error:
            raise UserError(f"SLURM would refuse these jobs: {error}") from None


@contextmanager
def only_one(sweep: Sweep) -> Iterator[None]:
    """Keep other processes from submitting the same sweep at the same time.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = sweep.folder / JOBS_FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The jobs unpickle the files of this folder: who can write here can run code as this user.
        folder.chmod(0o700)
        lock = FolderLock(folder)
        lock.acquire()
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}: choose another output") from None
    except HeldError as held:
        raise UserError(f"{sweep.folder}: is being submitted by {held}: wait for it") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _clean_environment() -> Iterator[None]:
    """Remove the variables of SLURM and torchrun while jobs are submitted.

    Variables of a job that this process runs in do not hold for the new jobs, and SBATCH_PARTITION and the like would
    win over the batch script. SLURM_CONF, the path of SLURM's configuration, stays.
    """
    from submitit.helpers import clean_env

    conf = os.environ.get("SLURM_CONF")
    with clean_env():
        if conf is not None:
            os.environ["SLURM_CONF"] = conf
        yield


@contextmanager
def _delayed_signals() -> Iterator[None]:
    """Delay signals until the body is done.

    Between sbatch and the record of the events, no file names the jobs.
    """
    numbers = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
    received: list[int] = []
    # The mask holds for this thread, and sbatch inherits it. Signals that another thread receives reach the handlers.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    handlers = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # None is a handler that Python did not set
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for delayed in received:
            signal.raise_signal(delayed)


def sbatch_text(sweep: Sweep, cluster: ClusterConfig, num_runs: int) -> str:
    """The batch script that submitit would submit. It depends on the arguments only.

    Args:
        sweep: the sweep.
        cluster: the cluster profile.
        num_runs: number of jobs in the array.
    """
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
    """The parameters of submitit's executor, by their names there.

    Args:
        sweep: the sweep.
        cluster: the cluster profile.
    """
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
        # If a rank dies, srun ends the others, which would wait for it. Since SLURM 22.05, srun does not inherit the
        # CPUs of a task from the batch script.
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
    setup = [TRAP_LINE]
    if cluster.setup:
        setup += ["set -e", *cluster.setup, "set +e"]
    setup += [*(f"export {name}={shlex.quote(value)}" for name, value in cluster.environment.items())]
    chosen["setup"] = setup
    chosen["teardown"] = requeue_lines(shlex.quote(str(sweep.folder / JOBS_FOLDER)))
    return chosen


def python_command(cluster: ClusterConfig) -> str:
    """The shell words that start Python on the nodes, inside the container if the profile names one."""
    if cluster.container:
        return f"{cluster.container} {shlex.quote(cluster.python or 'python3')}"
    return shlex.quote(cluster.python or sys.executable)


def _job(run: SweepRun, cluster: ClusterConfig) -> Job:
    return Job(
        str(run.folder),
        cluster.launcher,
        cluster.ranks_per_node,
        cluster.max_restarts,
        cluster.max_requeues if cluster.requeue else None,
        cluster.signal_s,
    )
