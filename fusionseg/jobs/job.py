"""What a SLURM job does: it trains a run, and says what became of it.

Nothing but names and numbers is pickled. A job that starts, for the first time or again, looks at the run's folder and
goes on from what is there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from fusionseg.engine.launch import FIRST_PORT, NUM_PORTS, first_node
from fusionseg.engine.signals import LEAD_VARIABLE
from fusionseg.entry import DONE, FAILED, WRONG_REQUEST
from fusionseg.jobs.ledger import last_end, read_events, write_event
from fusionseg.jobs.slurm import current_job, requeue, why_signalled
from fusionseg.jobs.worker import main as train_rank

_POLL_S = 0.5
_SIGNAL_AGAIN_S = 5.0


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

    def __call__(self) -> str:
        main = os.environ.get("SLURM_PROCID", "0") == "0"
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0") or 0)
        if main:
            self._record_start(restarts)
        if self.max_requeues is not None and restarts > self.max_requeues:
            reason = f"requeued {restarts} times, and max_requeues is {self.max_requeues}"
            if main:
                write_event(Path(self.run), "failed", job=current_job(), reason=reason)
            print(f"error: {reason}", file=sys.stderr)
            raise SystemExit(FAILED)
        os.environ[LEAD_VARIABLE] = str(self.signal_s)
        status = self._torchrun(restarts) if self.launcher == "torchrun" else train_rank([self.run])
        if main:
            self._record_end(status)
        if status != DONE:
            raise SystemExit(status)
        return "done"

    def checkpoint(self) -> Any:
        """What submitit runs after a signal that came before the training could take it: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _record_start(self, restarts: int) -> None:
        run = Path(self.run)
        events = [event for event in read_events(run) if event.get("job") == current_job()]
        unexplained = restarts - sum(event["event"] == "requeued" for event in events)
        if unexplained > 0 and not any(event.get("restarts") == restarts for event in events):
            # SLURM put it back by itself. Written now, since nobody was left to write it then.
            write_event(
                run, "requeued", job=current_job(), reason="by SLURM: node failure, preemption or scontrol requeue"
            )
        write_event(
            run,
            "started",
            job=current_job(),
            nodes=os.environ.get("SLURM_JOB_NODELIST"),
            restarts=restarts,
        )

    def _record_end(self, status: int) -> None:
        run = Path(self.run)
        end = last_end(run)
        if end is None or status != DONE:
            if status == WRONG_REQUEST:
                reason = "its request was refused: see its log"
            else:
                reason = end["reason"] if end and end["status"] == "failed" else "ended without a word: see its log"
            write_event(run, "failed", job=current_job(), reason=reason, exit_status=status)
        elif end["status"] != "interrupted":
            write_event(run, "finished", job=current_job(), step=end["step"])
        elif end["reason"] == "SIGUSR2" and self.max_requeues is not None:
            write_event(run, "requeued", job=current_job(), reason=why_signalled(), step=end["step"])
            requeue()
        else:
            write_event(run, "stopped", job=current_job(), reason=end["reason"], step=end["step"])

    def _torchrun(self, restarts: int) -> int:
        """Start torchrun on this node and see it through; its exit status.

        torchrun must not see SIGUSR2, which would end it while its processes live on. It is for the ranks, and is sent
        to them again until they have gone: one that is still starting up takes no notice.
        """
        job = int(os.environ["SLURM_JOB_ID"])
        host, port = first_node(os.environ["SLURM_STEP_NODELIST"]), FIRST_PORT + (7 * job) % NUM_PORTS
        command = [
            sys.executable, "-m", "torch.distributed.run",
            f"--nnodes={os.environ['SLURM_STEP_NUM_NODES']}", f"--nproc-per-node={self.ranks_per_node}",
            "--rdzv-backend=c10d", f"--rdzv-endpoint={host}:{port}", f"--rdzv-id={job}-{restarts}",
            f"--max-restarts={self.max_restarts}", "-m", "fusionseg.jobs.worker", self.run,
        ]  # fmt: skip
        # torch 2.13: with the shared store, ranks that are started again find the dead ones' addresses in it.
        environ = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        signals: list[int] = []

        def note(number: int, frame: FrameType | None) -> None:
            signals.append(number)

        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, note)
        agent = subprocess.Popen(["bash", "-c", "trap '' USR2; exec \"$@\"", "bash", *command], env=environ)
        sent = -_SIGNAL_AGAIN_S
        while agent.poll() is None:
            if signals and time.monotonic() - sent >= _SIGNAL_AGAIN_S:
                sent = time.monotonic()
                if signal.SIGTERM in signals:
                    agent.terminate()
                else:
                    _signal_children(agent.pid, signal.SIGUSR2)
            time.sleep(_POLL_S)
        return DONE if agent.returncode == 0 else FAILED


def _signal_children(pid: int, number: int) -> None:
    import psutil

    try:
        for child in psutil.Process(pid).children():
            child.send_signal(number)
    except psutil.NoSuchProcess:
        pass  # it has just ended
