"""What a SLURM job does: it trains a run, and says what became of it.

Nothing but names and numbers is pickled. A job that starts, for the first time or again, looks at the run's folder and
goes on from what is there. It does not queue itself again: in a container there is no scontrol. It leaves a mark, and
the batch script, which runs on the host, does it (`requeue_lines`).
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
from fusionseg.runs.job_events import JobEvent, count_last_requeues, read_events, write_event
from fusionseg.runs.records import RunStatus, has_finished, last_end
from fusionseg.training.signals import LEAD_VARIABLE
from fusionseg.utils.exit_status import DONE, FAILED

_POLL_S = 0.5
_SIGNAL_AGAIN_S = 5.0
_LAST_WORDS_S = 5.0
_FRUITLESS = 5  # a start that prepares data, or a slow one on a busy node, may train nothing; not one after another

# Without a handler of its own bash would die of the SIGTERM of a preemption, and queue nothing again.
TRAP_LINE = "trap : TERM USR2"


def requeue_lines(folder: str) -> list[str]:
    """The end of the batch script: queue the job again if it has left its mark.

    Args:
        folder: where the marks are, quoted for the shell.
    """
    return [
        "status=$?",
        # Not SLURM_JOB_ID: for one of the tasks of an array that is the number of the whole array.
        "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}; job=${job:-$SLURM_JOB_ID}",
        f'if rm {folder}/requeue-"$job" 2>/dev/null; then',
        # SLURM would bring back to life what was cancelled since the job left its mark (JobState=COMPLETING).
        '  shown=$(scontrol --oneliner show job "$job")',
        '  if [[ $shown == *JobState=RUNNING* || $shown == *PreemptTime=2* ]]; then scontrol requeue "$job"; fi',
        "fi",
        "exit $status",
    ]


@dataclass(frozen=True)
class Job:
    """The function that submitit calls in every task.

    Args:
        run: the run's folder, which holds its configuration.
        launcher: `srun`: this process is a rank; `torchrun`: it starts torchrun for its node.
        ranks_per_node: of torchrun.
        max_restarts: of torchrun, within a job.
        max_requeues: of the job; None if it is not to be requeued.
        signal_s: how long before its end the job is told.
    """

    run: str
    launcher: str
    ranks_per_node: int
    max_restarts: int
    max_requeues: int | None
    signal_s: int

    def __call__(self) -> None:
        main = os.environ.get("SLURM_PROCID", "0") == "0"
        if main:
            self._record_start()
        os.environ[LEAD_VARIABLE] = str(self.signal_s)
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
                self._record_end(status, signalled)
        if status != DONE:
            if not main:
                time.sleep(_LAST_WORDS_S)  # srun ends all tasks after the first: let the first one say what it was
            raise SystemExit(status)

    def _record_start(self) -> None:
        run, restarts = Path(self.run), int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        events = [event for event in read_events(run) if event.get("job") == current_job()]
        unexplained = restarts - sum(event["event"] == JobEvent.REQUEUED for event in events)
        if unexplained > 0 and not any(event.get("restarts") == restarts for event in events):
            # SLURM put it back by itself. Written now, since nobody was left to write it then.
            reason = "by SLURM: node failure, preemption or scontrol requeue"
            write_event(run, JobEvent.REQUEUED, job=current_job(), reason=reason)
        nodes = os.environ.get("SLURM_JOB_NODELIST")
        write_event(run, JobEvent.STARTED, job=current_job(), nodes=nodes, restarts=restarts)

    def _record_end(self, status: int, signalled: int) -> None:
        """Say what became of the run, and leave the mark for the batch script if it is to be queued again.

        Args:
            signalled: a signal that came when no training could take it, or 0.
        """
        run, job, end = Path(self.run), current_job(), last_end(Path(self.run))
        if end is not None and has_finished(end["status"]):
            write_event(run, JobEvent.FINISHED, job=job, step=end["step"])
            return
        interrupted = end["reason"] if end is not None and end["status"] == RunStatus.INTERRUPTED else ""
        if not (signalled or (interrupted and status == DONE)):
            known = end["reason"] if end is not None and end["status"] == RunStatus.FAILED else None
            refused = next((e["reason"] for e in reversed(read_events(run)) if e["event"] == JobEvent.REFUSED), None)
            reason = known or refused or "ended without a word: see its log"
            write_event(run, JobEvent.FAILED, job=job, reason=reason, exit_status=status)
            return
        wanted, reason = why_signalled(signal.Signals(signalled).name if signalled else interrupted)
        step = end["step"] if end is not None else None
        obstacle = self._why_not_again(job, reason, step) if wanted else ""
        if wanted and not obstacle:
            write_event(run, JobEvent.REQUEUED, job=job, reason=reason, step=step)
            (Path(os.environ["SUBMITIT_FOLDER"]) / f"requeue-{job}").touch()
            return
        if obstacle:
            reason = f"{reason}; not queued again: {obstacle}"
        write_event(run, JobEvent.STOPPED, job=job, reason=reason, step=step)

    def _why_not_again(self, job: str, reason: str, step: int | None) -> str:
        """What keeps the job from being queued again; empty where nothing does."""
        restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        if self.max_requeues is None:
            return "requeue is false"
        if restarts >= self.max_requeues:
            return f"requeued {restarts} times (max_requeues)"
        if reason == TIME_LIMIT and count_last_requeues(read_events(Path(self.run)), job, reason, step) >= _FRUITLESS:
            return f"{_FRUITLESS} starts in a row trained no step: raise time in the cluster profile, or lower signal_s"
        return ""

    def _torchrun(self) -> tuple[int, int]:
        """Start torchrun on this node and see it through; its exit status, and the signal that came meanwhile.

        torchrun must see neither SIGUSR2, which would end it while its processes live on, nor SIGTERM, after which it
        would give them 30 s. Signals are for the ranks, and are sent to them again until they have gone.
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
        # torch 2.13: with the shared store, ranks that are started again find the dead ones' addresses in it.
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


@contextmanager
def _leave_on_signal() -> Iterator[list[int]]:
    """While there is no training to take a signal (imports, preparation of data), it ends this process in order.

    The training has handlers of its own while it lasts.
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
    import psutil

    try:
        for child in psutil.Process(pid).children():
            child.send_signal(number)
    except psutil.NoSuchProcess:
        pass  # it has just ended
