"""The work of a SLURM job: train a run, and record how it ended.

The pickled job holds strings and integers only. At its first start and after each requeue, it reads the configuration
and the checkpoints from the run folder. A job cannot requeue itself, because a container has no scontrol. It leaves a
mark file, and the batch script, which runs on the host, requeues the job (`requeue_lines`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from fusionseg.cluster.slurm import TIME_LIMIT, current_job, why_signalled
from fusionseg.cluster.worker import main as train_rank
from fusionseg.distributed.launch import check_port, default_master_port, first_node
from fusionseg.distributed.watchdog.hooks import before_exit
from fusionseg.runs.job_events import JobEvent, count_last_requeues, is_cancelled_after, read_events, write_event
from fusionseg.runs.paths import HANGS
from fusionseg.runs.records import Record, RunStatus, has_finished, last_end
from fusionseg.training.ending.signals import LEAD_VARIABLE
from fusionseg.utils.exit_status import DONE, FAILED

_POLL_S = 0.5
_SIGNAL_AGAIN_S = 5.0
_ERROR_PRINT_S = 5.0
HUNG = "no rank made progress"
"""Reason of a requeue after a hang."""
# Consecutive starts that may end without a trained step, because they prepare data or their node is slow.
_MAX_IDLE = 5

# Without a handler, SIGTERM of a preemption would end bash before it requeues the job.
TRAP_LINE = "trap : TERM USR2"


def requeue_lines(folder: str) -> list[str]:
    """The last lines of the batch script: requeue the job if it has left its mark file.

    Args:
        folder: the folder of the mark files, quoted for the shell.
    """
    return [
        "status=$?",
        # In an array, one of the tasks has the ID of the whole array as its SLURM_JOB_ID.
        "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}; job=${job:-$SLURM_JOB_ID}",
        f'if rm {folder}/requeue-"$job" 2>/dev/null; then',
        # A requeue would also start a job that was cancelled after it left its mark (JobState=COMPLETING).
        '  shown=$(scontrol --oneliner show job "$job")',
        '  if [[ $shown == *JobState=RUNNING* || $shown == *PreemptTime=2* ]]; then scontrol requeue "$job"; fi',
        "fi",
        "exit $status",
    ]


@dataclass(frozen=True)
class Job:
    """The function that submitit calls in every task.

    Args:
        run: the run folder, which holds the configuration.
        launcher: `srun`: this process is a rank; `torchrun`: this process starts torchrun on its node.
        ranks_per_node: processes that torchrun starts.
        max_restarts: restarts by torchrun within a job.
        max_requeues: requeues of the job; None if it is never requeued.
        signal_s: seconds before the time limit at which SLURM sends the signal.
    """

    run: str
    launcher: str
    ranks_per_node: int
    max_restarts: int
    max_requeues: int | None
    signal_s: int

    def __call__(self) -> None:
        main = os.environ.get("SLURM_PROCID", "0") == "0"
        if is_cancelled_after(read_events(Path(self.run)), current_job(), JobEvent.REQUEUED):
            # The job was cancelled between its requeue and this start, when it had no process to get the signal.
            if main:
                write_event(Path(self.run), JobEvent.STOPPED, job=current_job(), reason=JobEvent.CANCELLED)
            return
        before = last_end(Path(self.run))
        if main:
            self._record_start()
        os.environ[LEAD_VARIABLE] = str(self.signal_s)
        if self.launcher == "srun":  # the watchdog ends this process, and `finally` would not run
            before_exit.append(lambda: self._record_end(FAILED, 0, before))
        status, signalled = FAILED, 0
        try:
            if self.launcher == "torchrun":
                status, signalled = self._torchrun()
            else:
                with _leave_on_signal() as received:
                    status = train_rank([self.run])
                if received:
                    status, signalled = DONE, received[0]
        finally:
            if main:
                self._record_end(status, signalled, before)
        if status != DONE:
            if not main:
                # srun kills all tasks when the first one ends with an error. Rank 0 prints its error in this time.
                time.sleep(_ERROR_PRINT_S)
            raise SystemExit(status)

    def _record_start(self) -> None:
        """Write the event of the job's start and, if SLURM itself requeued the job, that of the requeue."""
        run, restarts = Path(self.run), int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        events = [event for event in read_events(run) if event.get("job") == current_job()]
        unexplained = restarts - sum(event["event"] == JobEvent.REQUEUED for event in events)
        if unexplained > 0 and not any(event.get("restarts") == restarts for event in events):
            # SLURM requeued the job by itself, and ended all its processes: the event is written now.
            reason = "by SLURM: node failure, preemption or scontrol requeue"
            write_event(run, JobEvent.REQUEUED, job=current_job(), reason=reason)
        nodes = os.environ.get("SLURM_JOB_NODELIST")
        write_event(run, JobEvent.STARTED, job=current_job(), nodes=nodes, restarts=restarts)

    def _record_end(self, status: int, signalled: int, before: Record | None) -> None:
        """Write the event of the job's end, and leave the mark file if the batch script is to requeue the job.

        Args:
            status: exit status of the rank, or of torchrun.
            signalled: a signal that arrived while there was no training to handle it; 0 if there was none.
            before: the end that was recorded before this start. A start that is killed leaves no other one.
        """
        run, job, end = Path(self.run), current_job(), last_end(Path(self.run))
        new = None if end == before else end  # its measured seconds distinguish it from an earlier one
        if end is not None and has_finished(end["status"]) and (new is not None or status == DONE):
            write_event(run, JobEvent.FINISHED, job=job, step=end["step"])
            return
        if new is not None and new["status"] == RunStatus.STOPPED and status == DONE:
            write_event(run, JobEvent.STOPPED, job=job, reason=new["reason"], step=new["step"])
            return
        interrupted = new["reason"] if new is not None and new["status"] == RunStatus.INTERRUPTED else ""
        hung = new is not None and new["status"] == RunStatus.HUNG
        if not (signalled or hung or (interrupted and status == DONE)):
            known = new["reason"] if new is not None and new["status"] == RunStatus.FAILED else None
            reason = known or _refusal(run) or "ended without a record: see its log"
            write_event(run, JobEvent.FAILED, job=job, reason=reason, exit_status=status)
            return
        if hung and not signalled:
            wanted, reason = True, HUNG
        else:
            wanted, reason = why_signalled(signal.Signals(signalled).name if signalled else interrupted)
        step = end["step"] if end is not None else None
        obstacle = self._obstacle_to_requeue(job, reason, step) if wanted else ""
        if wanted and not obstacle:
            (Path(os.environ["SUBMITIT_FOLDER"]) / f"requeue-{job}").touch()  # also if the run folder takes no event
            write_event(run, JobEvent.REQUEUED, job=job, reason=reason, step=step)
            return
        if obstacle:
            reason = f"{reason}; not requeued: {obstacle}"
        write_event(run, JobEvent.STOPPED, job=job, reason=reason, step=step)

    def _obstacle_to_requeue(self, job: str, reason: str, step: int | None) -> str:
        """The reason why the job must not be requeued; an empty text if there is none."""
        restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        events = read_events(Path(self.run))
        if is_cancelled_after(events, job, JobEvent.STARTED):
            return JobEvent.CANCELLED
        if self.max_requeues is None:
            return "requeue is false"
        if restarts >= self.max_requeues:
            return f"requeued {restarts} times (max_requeues)"
        if reason == HUNG and count_last_requeues(events, job, reason, step) >= _MAX_IDLE:
            return f"{_MAX_IDLE} starts in a row hung at the same step: see the folder {HANGS} of the run"
        if reason == TIME_LIMIT and count_last_requeues(events, job, reason, step) >= _MAX_IDLE:
            return f"{_MAX_IDLE} starts in a row trained no step: raise time in the cluster profile, or lower signal_s"
        return ""

    def _torchrun(self) -> tuple[int, int]:
        """Start torchrun on this node and wait for its end.

        torchrun must not receive signals: SIGUSR2 would end it and leave its processes running, and after SIGTERM it
        gives its processes 30 s only. Signals are sent to the ranks, again and again until they have ended.

        Returns:
            The exit status, and the first signal that arrived; 0 if none did.
        """
        job, restarts = int(os.environ["SLURM_JOB_ID"]), os.environ.get("SLURM_RESTART_COUNT") or "0"
        host, port = first_node(os.environ["SLURM_STEP_NODELIST"]), default_master_port(job)
        is_host = os.environ["SLURM_NODEID"] == "0"
        if is_host:
            check_port((host, port))
        command = [
            sys.executable, "-m", "torch.distributed.run",
            f"--nnodes={os.environ['SLURM_STEP_NUM_NODES']}", f"--nproc-per-node={self.ranks_per_node}",
            "--rdzv-backend=c10d", f"--rdzv-endpoint={host}:{port}", f"--rdzv-id={job}-{restarts}",
            f"--rdzv-conf=is_host={int(is_host)}", f"--max-restarts={self.max_restarts}",
            "-m", "fusionseg.cluster.worker", self.run,
        ]  # fmt: skip
        # In torch 2.13, restarted ranks would find the addresses of the dead ranks in a shared store.
        environ = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        signals: list[int] = []

        def note(number: int, frame: FrameType | None) -> None:
            signals.append(number)

        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, note)
        agent = subprocess.Popen(["bash", "-c", "trap '' USR2 TERM; exec \"$@\"", "bash", *command], env=environ)
        sent = -_SIGNAL_AGAIN_S
        while agent.poll() is None:
            if signals and time.monotonic() - sent >= _SIGNAL_AGAIN_S:
                sent = time.monotonic()
                _signal_children(agent.pid, signals[0])
            time.sleep(_POLL_S)
        return (DONE if agent.returncode == 0 else FAILED), (signals[0] if signals else 0)


def _refusal(run: Path) -> str | None:
    """The reason why the last start of a run was refused; None if it was not."""
    for event in reversed(read_events(run)):
        if event["event"] == JobEvent.REFUSED:
            return str(event["reason"])
        if event["event"] == JobEvent.STARTED:
            return None
    return None


@contextmanager
def _leave_on_signal() -> Iterator[list[int]]:
    """End this process by SystemExit on a signal that arrives before the training has set its own handlers.

    This covers the imports and the preparation of data.

    Yields:
        A list that receives the signal.
    """
    received: list[int] = []

    def leave(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise SystemExit(DONE)

    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, leave)
    try:
        yield received
    except SystemExit:
        if not received:
            raise


def _signal_children(pid: int, number: int) -> None:
    """Send a signal to the ranks, which are the children of torchrun."""
    import psutil

    try:
        for child in psutil.Process(pid).children():
            child.send_signal(number)
    except psutil.NoSuchProcess:
        pass  # it has just ended
