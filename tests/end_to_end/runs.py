"""Helpers that start the program in separate processes and read the files of its runs.

`fresh` processes are started like those of a user: `python -m fusionseg.train`, torchrun. Their imports of torch and
MONAI take about four seconds. `warm` processes are forked from an interpreter that has imported both. They run the same
module as `__main__` with the same arguments, and have their own environment and output files.
"""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from fusionseg.runs.checkpoints import read_checkpoint
from fusionseg.runs.records import is_measurement

TIMEOUT_S = 120.0
REPOSITORY = Path(__file__).parents[2]
TRAIN, PRETRAIN, COMMANDS = "fusionseg.train", "fusionseg.pretrain", "fusionseg"

_FORKSERVER = multiprocessing.get_context("forkserver")
_WARM = [
    "torch",
    "torch._dynamo",
    "torch.distributed",
    "torch.nn.parallel",
    "torch.utils.tensorboard",
    "monai.networks.nets",
    "fusionseg.training.start",
    "fusionseg.inference.predict",
    "fusionseg.inference.evaluation.segmentation",
]
"""Modules that the warm interpreter has imported."""


@dataclass(frozen=True)
class Ended:
    """Exit status and output of a process that has ended."""

    status: int
    out: str
    err: str

    def expect(self, status: int) -> Ended:
        """Assert the exit status; return self. The failure message has the output."""
        assert self.status == status, f"status {self.status}, not {status}\n{self.out}\n{self.err}"
        return self


class Started:
    """A running process."""

    def __init__(self, process: Any, out: Path, err: Path) -> None:
        self.process = process
        self.out, self.err = out, err

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    @property
    def status(self) -> int | None:
        """The exit status; None while it runs."""
        if isinstance(self.process, subprocess.Popen):
            return self.process.poll()
        status: int | None = self.process.exitcode
        return status

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout_s: float = TIMEOUT_S) -> Ended:
        """Wait for the end. A process that does not end is killed, and the test fails."""
        limit = time.monotonic() + timeout_s
        while self.status is None:
            if time.monotonic() > limit:
                self.send(signal.SIGABRT)  # the faulthandler then writes the stacks of all threads to stderr
                time.sleep(1)
                raise AssertionError(f"still running after {timeout_s} s:\n{self.err.read_text()}")
            time.sleep(0.01)
        status = self.status
        assert status is not None
        return Ended(status, self.out.read_text(errors="replace"), self.err.read_text(errors="replace"))


class Program:
    """Starts processes; their output goes to files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0

    def warm(
        self, module: str, *arguments: object, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Started:
        """Start `python -m module arguments`, forked from the warm interpreter."""
        return self.function(_run_module, (module, [str(a) for a in arguments]), env, cwd)

    def function(
        self,
        work: Callable[..., None],
        arguments: tuple[Any, ...],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Started:
        """Start `work(*arguments)` in a process forked from the warm interpreter."""
        out, err = self._files()
        # A parallel preparation in this process ends the server, and leaves its own modules for the next server.
        _FORKSERVER.set_forkserver_preload(_WARM)
        process = _FORKSERVER.Process(  # type: ignore[attr-defined]
            target=_enter,
            args=(work, arguments, dict(env or {}), str(cwd or self.folder), str(out), str(err)),
        )
        process.start()
        return Started(process, out, err)

    def fresh(self, *command: object, env: Mapping[str, str | None] | None = None, cwd: Path | None = None) -> Started:
        """Start `python command` as a new process. In `env`, None removes a variable."""
        out, err = self._files()
        environ = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONFAULTHANDLER": "1",
            "PYTHONPATH": str(REPOSITORY),
            **(env or {}),
        }
        with out.open("w") as out_stream, err.open("w") as err_stream:
            process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                stdout=out_stream,
                stderr=err_stream,
                cwd=cwd or self.folder,
                env={name: value for name, value in environ.items() if value is not None},
            )
        return Started(process, out, err)

    def torchrun(self, processes: int, *arguments: object, cwd: Path | None = None) -> Started:
        """Start `torchrun --nproc_per_node=processes -m fusionseg.train arguments`."""
        launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}")
        return self.fresh(*launcher, "-m", TRAIN, *arguments, cwd=cwd)

    def ranks(self, processes: int, *arguments: object, module: str = TRAIN) -> list[Started]:
        """Start the processes that torchrun would start: warm, and without torchrun's supervision."""
        return [self.warm(module, *arguments, env=env) for env in rank_environments(processes)]

    def _files(self) -> tuple[Path, Path]:
        self._count += 1
        return self.folder / f"{self._count:03d}.out", self.folder / f"{self._count:03d}.err"


def rank_environments(processes: int) -> list[dict[str, str]]:
    """Return for each rank the variables that torchrun sets."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    world = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return [{**common, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def ranks_of(agent: Started) -> list[psutil.Process]:
    """The ranks that a torchrun has started, in their order."""
    children = psutil.Process(agent.pid).children()
    return sorted((child for child in children if "RANK" in child.environ()), key=lambda rank: rank.environ()["RANK"])


def _enter(
    work: Callable[..., None], arguments: tuple[Any, ...], env: dict[str, str], cwd: str, out: str, err: str
) -> None:
    imported = set(sys.modules)
    os.environ.update(env)
    os.chdir(cwd)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    faulthandler.enable(2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server ignores it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup, which ignores it
    assert imported.issuperset(_WARM), "the server of this process has not imported the modules of _WARM"
    work(*arguments)


def _run_module(module: str, arguments: list[str]) -> None:
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


# -- files of a run --------------------------------------------------------------------------------


def records(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl, all or those of a kind; without a part of a line that a kill has left."""
    text = (run / "metrics.jsonl").read_text()
    found = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [record for record in found if kind is None or record["kind"] == kind]


def results(run: Path) -> list[dict[str, Any]]:
    """Return the records without measurements; the rest depends only on configuration and data."""
    return [{key: value for key, value in record.items() if not is_measurement(key)} for record in records(run)]


def checkpoint(run: Path, name: str = "last.pt") -> dict[str, Any]:
    """Load a checkpoint of a run."""
    path = run / "checkpoints" / name
    if path.is_dir():
        return read_checkpoint(path)
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def tensors(value: Any, at: str = "") -> dict[str, torch.Tensor]:
    """Return all tensors in a nested value, by their path."""
    if isinstance(value, torch.Tensor):
        return {at: value}
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {place: tensor for key, item in items for place, tensor in tensors(item, f"{at}/{key}").items()}


def assert_same_tensors(ours: Any, theirs: Any) -> None:
    """Assert that two nested values hold the same tensors, bit for bit."""
    one, other = tensors(ours), tensors(theirs)
    assert one.keys() == other.keys()
    assert one
    different = [place for place in one if not torch.equal(one[place], other[place])]
    assert different == []


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Assert that two runs have the same results and the same final state, bit for bit."""
    assert results(ours) == results(theirs)
    ended, expected = checkpoint(ours), checkpoint(theirs)
    assert ended.keys() == expected.keys()
    for part in ended.keys() & {"model", "averaged", "train_step"}:
        assert_same_tensors(ended[part], expected[part])
    assert (ended["step"], ended["history"], ended["best"]) == (
        expected["step"],
        expected["history"],
        expected["best"],
    )
    assert_same_tensors(checkpoint(ours, "best.pt")["model"], checkpoint(theirs, "best.pt")["model"])


def assert_same_training(ours: Path, theirs: Path) -> None:
    """Assert that two runs of 20 steps on different numbers of processes are equal up to rounding."""
    one, other = records(ours, "train"), records(theirs, "train")
    assert [record["step"] for record in one] == [record["step"] for record in other] == list(range(1, 21))
    assert [record["samples"] for record in one] == [record["samples"] for record in other]
    assert _losses(one) == pytest.approx(_losses(other), rel=1e-5)
    assert [record["lr"] for record in one] == [record["lr"] for record in other]
    assert [r["grad_norm"] for r in one] == pytest.approx([r["grad_norm"] for r in other], rel=1e-4)

    one, other = records(ours, "val"), records(theirs, "val")
    assert [record["step"] for record in one] == [record["step"] for record in other] == [10, 20]
    for record, expected in zip(one, other, strict=True):
        assert record["cases"] == expected["cases"] == 1
        assert record["dice"] == pytest.approx(expected["dice"], abs=1e-4)
        assert record["dice_per_class"] == pytest.approx(expected["dice_per_class"], abs=1e-4)


def _losses(found: list[dict[str, Any]]) -> list[float]:
    return [record["loss"] for record in found]


def wait_for_step(run: Path, step: int, processes: Sequence[Started]) -> None:
    """Wait until the record of a training step is in metrics.jsonl."""
    file, wanted = run / "metrics.jsonl", f'{{"kind": "train", "step": {step},'
    limit = time.monotonic() + TIMEOUT_S
    while not (file.exists() and wanted in file.read_text()):
        for process in processes:
            assert process.status is None, f"ended before step {step}: {process.wait()}"
        assert time.monotonic() < limit, f"step {step} was not reached in {TIMEOUT_S} s"
        time.sleep(0.002)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
