"""A sweep on this machine, without a scheduler: as many runs at a time as there are devices for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fusionseg.errors import UserError
from fusionseg.jobs.cluster import ClusterConfig
from fusionseg.jobs.ledger import last_end, write_event
from fusionseg.jobs.plan import Planned
from fusionseg.jobs.submit import JOBS_FOLDER, write_run_config
from fusionseg.jobs.sweep import Sweep, SweepRun

_POLL_S = 0.2


@dataclass
class _Running:
    run: SweepRun
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    gpus: list[str]


def run_locally(sweep: Sweep, planned: list[Planned], cluster: ClusterConfig) -> int:
    """Train the runs that are due; how many of them failed.

    SIGINT and SIGTERM make the runs save and leave; the same command goes on from there.

    Raises:
        UserError: a run needs more GPUs than there are.
    """
    waiting = deque(entry.run for entry in planned if entry.is_due)
    free = _visible_gpus() if cluster.gpus_per_node else []
    if cluster.gpus_per_node > len(free):
        raise UserError(
            f"a run takes {cluster.gpus_per_node} GPUs (gpus_per_node), and this machine has {len(free)}: lower it, or"
            " set it to 0 to train on CPUs"
        )
    total, done, failed = len(waiting), 0, 0
    running: list[_Running] = []
    stopping: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: stopping.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        while running or (waiting and not stopping):
            while waiting and not stopping and len(running) < cluster.parallel and len(free) >= cluster.gpus_per_node:
                own, free = free[: cluster.gpus_per_node], free[cluster.gpus_per_node :]
                running.append(_start(waiting.popleft(), sweep, cluster, own))
                print(f"started {running[-1].run.config.name}, log {running[-1].log.name}", flush=True)
            time.sleep(_POLL_S)
            for _ in range(len(stopping)):
                stopping_now = stopping.pop()
                waiting.clear()
                for entry in running:
                    entry.process.send_signal(stopping_now)
            for entry in [entry for entry in running if entry.process.poll() is not None]:
                running.remove(entry)
                free += entry.gpus
                done += 1
                failed += _finish(entry)
                print(f"[{done} of {total}] {entry.run.config.name}: {_outcome(entry.run.folder)}", flush=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return failed


def _start(run: SweepRun, sweep: Sweep, cluster: ClusterConfig, gpus: list[str]) -> _Running:
    write_run_config(run)
    log = sweep.folder / JOBS_FOLDER / f"{run.config.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    worker = ["-m", "fusionseg.jobs.worker", str(run.folder)]
    if cluster.ranks_per_node > 1:
        signals = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2"
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={cluster.ranks_per_node}"]
        worker = ["-m", *torchrun, f"--signals-to-handle={signals}", f"--max-restarts={cluster.max_restarts}", *worker]
    command = [cluster.python or sys.executable, *worker]
    environ = {**os.environ, **cluster.environment}
    if gpus:
        environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    write_event(run.folder, "submitted", job="local", log=str(log), steps=run.config.train.steps, settings=run.settings)
    write_event(run.folder, "started", job="local", nodes=os.uname().nodename, restarts=0)
    file = log.open("ab")
    # A session of its own: Ctrl-C in the terminal reaches this process, which then tells each run once.
    process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environ, start_new_session=True)
    return _Running(run, process, file, gpus)


def _finish(entry: _Running) -> bool:
    """Record how a run ended; whether it failed."""
    entry.log.close()
    folder, end = entry.run.folder, last_end(entry.run.folder)
    if end is not None and end["status"] in ("completed", "plateau"):
        write_event(folder, "finished", job="local", step=end["step"])
        return False
    if end is not None and end["status"] == "interrupted":
        write_event(folder, "stopped", job="local", reason=end["reason"], step=end["step"])
        return False
    reason = end["reason"] if end else "ended without a record"
    write_event(folder, "failed", job="local", reason=reason, exit_status=entry.process.returncode)
    return True


def _outcome(folder: Path) -> str:
    end = last_end(folder)
    return f"{end['status']} at step {end['step']} ({end['reason']})" if end else "failed: see its log"


def _visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    named = [part for part in given.split(",") if part]
    return named or [str(number) for number in range(torch.cuda.device_count())]
