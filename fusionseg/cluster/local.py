"""A sweep on this machine, without a scheduler: as many runs at a time as there are devices for."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from fusionseg.cluster.profile import ClusterConfig
from fusionseg.cluster.slots import Slot, slots_for, start_process, visible_gpus
from fusionseg.cluster.submission import Submission
from fusionseg.cluster.sweep import JOBS_FOLDER, Sweep, SweepRun
from fusionseg.runs.continuation.extension import record_extension
from fusionseg.runs.job_events import JobEvent, write_event
from fusionseg.runs.paths import last_step
from fusionseg.runs.records import Record, RunStatus, has_finished, last_end
from fusionseg.runs.run_config import write_run_config
from fusionseg.training.ending.signals import is_ignored
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import open_no_link, writing

_POLL_S = 0.2


@dataclass
class _Running:
    """A run that is being trained."""

    run: SweepRun
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    slot: Slot
    end_before: Record | None
    """The end of the start that this one continues. A run that is killed leaves no other one."""

    def new_end(self) -> Record | None:
        """The end that this start has recorded; its measured seconds distinguish it from an earlier one."""
        end = last_end(self.run.folder)
        return None if end == self.end_before else end


def check_devices(cluster: ClusterConfig) -> None:
    """Make sure that this machine has the GPUs that a run takes (`gpus_per_node`).

    Args:
        cluster: the profile.

    Raises:
        UserError: the machine has fewer.
    """
    if cluster.gpus_per_node > len(visible_gpus()):
        raise UserError(
            f"a run takes {cluster.gpus_per_node} GPUs (gpus_per_node), and this machine has {len(visible_gpus())}:"
            " lower it, or set it to 0 to train on CPUs"
        )


class LocalEnd(NamedTuple):
    """The end of the trainings of a sweep on this machine."""

    failed: int
    """Number of runs that failed."""
    was_stopped: bool
    """Whether a signal has ended them."""


def run_locally(sweep: Sweep, submissions: list[Submission], cluster: ClusterConfig) -> LocalEnd:
    """Train the runs that are due.

    SIGINT, SIGTERM and SIGHUP make the runs save and end; the same command continues them. SIGHUP is ignored if it was
    ignored at the start (nohup).

    Args:
        sweep: the sweep.
        submissions: the decisions about all its runs; runs that are not due are left out.
        cluster: the cluster profile.
    """
    waiting = deque(submission.run for submission in submissions if submission.is_due)
    free = slots_for(cluster)
    for run in waiting:
        record_extension(run.folder, run.config)
        write_run_config(run.folder, run.config)
        log = sweep.folder / JOBS_FOLDER / f"{run.config.name}.log"
        write_event(run.folder, JobEvent.SUBMITTED, job="local", log=str(log), steps=run.config.train.steps)
    total, done, failed = len(waiting), 0, 0
    signalled = False
    running: list[_Running] = []
    stopping: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: stopping.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if number != signal.SIGHUP or not is_ignored(number)
    }
    try:
        while running or (waiting and not stopping):
            while waiting and free and not stopping:
                running.append(_start(waiting.popleft(), sweep, cluster, free.pop(0)))
                print(f"started {running[-1].run.config.name}, log {running[-1].log.name}", flush=True)
            time.sleep(_POLL_S)
            if stopping and not signalled:
                signalled = True
                waiting.clear()
                for one in running:
                    one.process.send_signal(signal.SIGTERM)
            for ended in [one for one in running if one.process.poll() is not None]:
                running.remove(ended)
                free.append(ended.slot)
                done += 1
                failure = _record_end(ended, is_stopping=signalled)
                failed += bool(failure)
                outcome = f"failed ({failure})" if failure else _outcome(ended.run.folder)
                print(f"[{done} of {total}] {ended.run.config.name}: {outcome}", flush=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return LocalEnd(failed, signalled)


def _start(run: SweepRun, sweep: Sweep, cluster: ClusterConfig, slot: Slot) -> _Running:
    worker = ["-m", "fusionseg.cluster.worker", str(run.folder)]
    if cluster.ranks_per_node > 1:
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={cluster.ranks_per_node}"]
        worker = ["-m", *torchrun, f"--max-restarts={cluster.max_restarts}", *worker]
    end_before = last_end(run.folder)
    log = sweep.folder / JOBS_FOLDER / f"{run.config.name}.log"
    with writing(log):
        file = open_no_link(log, "ab")
    process = start_process(worker, slot, cluster, file)  # Ctrl-C: this process passes it on, once
    write_event(run.folder, JobEvent.STARTED, job="local", nodes=os.uname().nodename, restarts=0, pid=process.pid)
    return _Running(run, process, file, slot, end_before)


def _record_end(ended: _Running, *, is_stopping: bool) -> str:
    """Write the event of a run's end.

    Args:
        ended: the run.
        is_stopping: it was told to end; one that was still starting leaves no end record.

    Returns:
        The reason of a failure; empty if the run has finished or was interrupted.
    """
    ended.log.close()
    folder, end, status = ended.run.folder, ended.new_end(), ended.process.returncode
    if end is not None and has_finished(end["status"]):
        write_event(folder, JobEvent.FINISHED, job="local", step=end["step"])
        return ""
    if end is not None and end["status"] in (RunStatus.INTERRUPTED, RunStatus.STOPPED):
        write_event(folder, JobEvent.STOPPED, job="local", reason=end["reason"], step=end["step"])
        return ""
    if end is None and is_stopping and status in (-signal.SIGTERM, 128 + signal.SIGTERM):
        write_event(folder, JobEvent.STOPPED, job="local", reason="stopped while it started", step=last_step(folder))
        return ""
    reason = end["reason"] if end else "ended without a record"
    write_event(folder, JobEvent.FAILED, job="local", reason=reason, exit_status=status)
    return f"{reason}, exit status {status}: see its log"


def _outcome(folder: Path) -> str:
    """The end of a run that has finished or was interrupted."""
    end = last_end(folder)
    return f"{end['status']} at step {end['step']} ({end['reason']})" if end else "ended"
