"""Fifty kills at random times: the run ends as one that nobody has disturbed, bit for bit."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from end_to_end.conftest import arguments
from end_to_end.runs import TRAIN, Program, Started, assert_same_run, ranks_of, records
from fusionseg.runs.accounts.history import read_history
from fusionseg.utils.files import PARTIAL

SEED, KILLS = 17, 50
# Averages, accumulation, dropout, augmentation, validation and a save in the background every few steps.
SETTINGS = (
    "train={steps: 1000, global_batch: 4, micro_batch: 1, ema: 0.9}",
    "validate.every=40",
    "checkpoint={every: 5, keep: 2}",
    "log={every: 1, samples: true, tensorboard: false}",
    "model.dropout=0.1",
    "augment={preset: nnunet, noise: {prob: 0.5}}",
)
WAYS = ("rank 0", "rank 1", "both", "start-up", "saving rank 0", "saving both", "validating", "torchrun")


def end_of(processes: Sequence[psutil.Process]) -> None:
    """Wait until the processes have ended: a rank without the other one ends by itself."""
    _, alive = psutil.wait_procs(processes, timeout=90)
    assert not alive, f"still there 90 s after a kill: {alive}"


def kill(ranks: Sequence[psutil.Process], which: str) -> None:
    for number, rank in enumerate(ranks):
        if which in ("both", f"rank {number}"):
            with suppress(psutil.NoSuchProcess):  # it has ended because the other one was killed
                rank.kill()


def wait_until(condition: Callable[[], bool], ranks: Sequence[psutil.Process]) -> None:
    limit = time.monotonic() + 300
    while not condition():
        time.sleep(0.002)
        assert time.monotonic() < limit and all(map(psutil.pid_exists, (rank.pid for rank in ranks)))


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def trains_from_here(run: Path) -> Callable[[], bool]:
    """Tell whether a start has written a record of its own: it first removes those after its checkpoint."""
    starts, seen = len(read_history(run)), [0]

    def trains() -> bool:
        if len(read_history(run)) <= starts:
            return False
        before, seen[0] = seen[0], size(run / "metrics.jsonl")
        return 0 < before < seen[0]

    return trains


def is_saving(run: Path) -> bool:
    return any(run.glob(f"checkpoints/{PARTIAL}*"))


def last_kind(run: Path) -> str:
    return records(run)[-1]["kind"] if size(run / "metrics.jsonl") else ""


@pytest.mark.long
def test_fifty_random_kills(program: Program, config_file: Path, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    whole, run = tmp_path / "whole", tmp_path / "killed"
    for rank in program.ranks(2, *arguments(config_file, whole, *SETTINGS)):
        rank.wait(600).expect(0)
    command = arguments(config_file, run, *SETTINGS)
    done: Counter[str] = Counter()
    while done.total() < KILLS:
        way = WAYS[done.total() % len(WAYS)]
        trains = trains_from_here(run)
        if way == "torchrun":
            done[way] += under_torchrun(program, command, run, trains, chance)
            continue
        started = program.ranks(2, *command)
        ranks = [psutil.Process(process.pid) for process in started]
        if way == "start-up":
            time.sleep(chance.uniform(0.3, 2.0))
        else:
            wait_until(trains, ranks)
            time.sleep(chance.uniform(0.0, 2.0))
            if way.startswith("saving"):
                wait_until(lambda: is_saving(run), ranks)
            elif way == "validating":
                wait_until(lambda: last_kind(run) == "val", ranks)
        kill(
            ranks,
            {"saving rank 0": "rank 0", "saving both": "both", "start-up": "both", "validating": "rank 1"}.get(
                way, way
            ),
        )
        end_of(ranks)
        assert not any(process.wait().status == 0 for process in started), f"the run is too short: {done}"
        done[way] += 1
    for rank in program.ranks(2, *command):
        rank.wait(600).expect(0)
    print(f"kills: {dict(done)}; starts: {len(read_history(run))}")
    assert_same_run(run, whole)


def under_torchrun(
    program: Program, command: Sequence[str], run: Path, trains: Callable[[], bool], chance: random.Random
) -> int:
    """Kill each rank once, which torchrun starts again, and then torchrun; return the number of kills."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=3")
    agent: Started = program.fresh(*launcher, "-m", TRAIN, *command)
    for number in range(3):
        wait_until(trains, [psutil.Process(agent.pid)])
        time.sleep(chance.uniform(0.0, 1.0))
        ranks = ranks_of(agent)
        trains = trains_from_here(run)
        if number < 2:
            kill(ranks, f"rank {number}")
        else:
            psutil.Process(agent.pid).kill()
        end_of(ranks)
    agent.wait()
    return 3
