"""A real SLURM for the tests, started by `slurm/devcluster`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from end_to_end.runs import REPOSITORY
from fusionseg.runs.job_events import read_events

SCRIPT = REPOSITORY / "slurm/devcluster"
PROFILE = REPOSITORY / "slurm/clusters/devcluster.yaml"
TIMEOUT_S = 600.0  # of a busy machine


def is_missing() -> bool:
    """Tell whether SLURM is not installed or this process is not root."""
    return shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin") is None or os.geteuid() != 0


class DevCluster:
    """A SLURM cluster on this machine; a context manager that starts and stops it."""

    def __init__(self, folder: Path, port: int, preemption: str = "signal", **variables: int) -> None:
        self.environ = {
            **os.environ,
            "DEVCLUSTER_FOLDER": str(folder),
            "DEVCLUSTER_PORT": str(port),
            "DEVCLUSTER_ACCOUNTING": "none",
            "DEVCLUSTER_PREEMPTION": preemption,
            "PYTHONPATH": str(REPOSITORY),
            **{f"DEVCLUSTER_{name.upper()}": str(value) for name, value in variables.items()},
        }

    def __enter__(self) -> DevCluster:
        self.script("start")
        return self

    def __exit__(self, *error: object) -> None:
        self.script("stop")

    def script(self, *arguments: str) -> str:
        """Run `slurm/devcluster arguments`; return its output."""
        return self._call([str(SCRIPT), *arguments], 0)

    def run(self, *command: str, status: int = 0) -> str:
        """Run a command in the environment of the cluster; return its output."""
        return self._call([str(SCRIPT), "exec", *command], status)

    def fusionseg(self, *arguments: object, status: int = 0) -> str:
        """Run `fusionseg arguments` in the environment of the cluster; return its output."""
        return self.run(sys.executable, "-m", "fusionseg", *map(str, arguments), status=status)

    def submit(self, sweep: Path, *overrides: str) -> str:
        """Run `fusionseg submit` with the profile of this cluster; return its output."""
        return self.fusionseg("submit", sweep, "--cluster", PROFILE, *overrides)

    def wait_until_empty(self) -> None:
        """Wait until the queue is empty."""
        self.wait(lambda: not self.run("squeue", "--noheader"), every_s=0.5)

    def wait(self, found: Callable[[], Any], timeout_s: float = TIMEOUT_S, every_s: float = 0.1) -> Any:
        """Wait until `found()` is true; return its value. It is called every `every_s` seconds.

        A command on the cluster takes 0.1 s of a processor: a check that runs one is better called less often.
        """
        limit = time.monotonic() + timeout_s
        while time.monotonic() < limit:
            if value := found():
                return value
            time.sleep(every_s)
        raise AssertionError(
            f"the condition is not true after {timeout_s} s:\n{self.run('squeue')}\n{self.run('sinfo', '-Nl')}"
        )

    def quiet(self) -> None:
        """Cancel all jobs and bring all nodes up."""
        self.run("scancel", "--user", "root")
        self.wait_until_empty()
        for node in ("node1", "node2"):
            self.script("node-on", node)
        self.wait(lambda: self.run("sinfo", "-hNp", "main", "-o", "%T").split() == ["idle", "idle"])

    def _call(self, command: list[str], status: int) -> str:
        done = subprocess.run(
            command,
            env=self.environ,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == status, f"{command} ended with {done.returncode}, not {status}:\n{done.stdout}"
        return done.stdout


def job_of(run: Path) -> str:
    """Return the last job to which a run was submitted."""
    return str([event["job"] for event in read_events(run) if event["event"] == "submitted"][-1])


def told(run: Path) -> list[tuple[str, str]]:
    """Return event and reason of all job events of a run."""
    return [(event["event"], event.get("reason", "")) for event in read_events(run)]


def last_step(run: Path) -> int:
    """Return the step of the last train record; 0 if there is none."""
    file = run / "metrics.jsonl"
    lines = [line for line in file.read_text().splitlines() if '"train"' in line] if file.exists() else []
    return int(lines[-1].split('"step": ')[1].split(",")[0]) if lines and lines[-1].endswith("}") else 0
