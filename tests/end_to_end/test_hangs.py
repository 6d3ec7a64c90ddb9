"""A rank that hangs: who is missed, in which phase, the stacks, the end of the run, and no process that stays."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from faults.catalogue import assert_seen

from end_to_end.conftest import arguments
from end_to_end.runs import TRAIN, Program, Started, rank_environments, records

SLOW = (2, 3)  # outside of steps the limits are five times as long


def train_until_it_hangs(phase: str, entries: int, how: str, argv: list[str]) -> None:
    """Train; the phase hangs when it is entered the given number of times: it sleeps, or the process is stopped."""
    from fusionseg.observability import ranges

    enter, entered = ranges.annotate.__enter__, 0

    def hang(self: ranges.annotate) -> None:
        nonlocal entered
        enter(self)
        entered += self.name == phase
        if self.name == phase and entered == entries:
            if how == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(1e6)

    ranges.annotate.__enter__ = hang  # type: ignore[method-assign]
    sys.argv = [TRAIN, *argv]
    runpy.run_module(TRAIN, run_name="__main__", alter_sys=True)


def start(program: Program, argv: list[str], missed: int, phase: str, entries: int, how: str) -> list[Started]:
    """Start two ranks, one of which will hang."""
    started = []
    for rank, env in enumerate(rank_environments(2)):
        if rank == missed:
            started.append(program.function(train_until_it_hangs, (phase, entries, how, argv), env))
        else:
            started.append(program.warm(TRAIN, *argv, env=env))
    return started


@dataclass(frozen=True)
class Hang:
    phase: str
    entries: int
    rank: int
    how: str
    said: tuple[str, ...] = ()
    """Words beside those of the catalogue of faults."""
    limits: tuple[int, int] = (7, 10)
    """distributed.hang_warn_s and hang_end_s."""
    fault: str = "rank-hangs-in-a-step"


def case(hang: Hang, *marks: pytest.MarkDecorator) -> object:
    return pytest.param(hang, marks=marks, id=f"{hang.phase} of rank {hang.rank}, {hang.how}")


LONG = pytest.mark.long  # one is in every run of the tests; the others are rare
IN_STEP, STOPPED, RANK_0 = (
    pytest.mark.fault("rank-hangs-in-a-step"),
    pytest.mark.fault("rank-stopped"),
    pytest.mark.fault("rank-0-stopped"),
)
HANGS = [
    case(
        Hang("forward", 5, 1, "sleep", ("rank 1 (", "in step 5, forward", "the others are in step 5, allreduce")),
        IN_STEP,
        LONG,
    ),
    case(Hang("backward", 5, 1, "stop", fault="rank-stopped"), STOPPED),
    case(Hang("forward", 5, 0, "stop", ("rank 1 (",), (7, 22), "rank-0-stopped"), RANK_0, LONG),
    case(Hang("data", 5, 0, "sleep", ("rank 0 (", "in step 5, data")), IN_STEP, LONG),
    case(
        Hang("validate", 1, 1, "sleep", ("rank 1 (",), SLOW, "rank-hangs-in-validation"),
        pytest.mark.fault("rank-hangs-in-validation"),
        LONG,
    ),
    case(
        Hang("checkpoint", 2, 0, "sleep", ("rank 0 (",), SLOW, "rank-hangs-at-a-checkpoint"),
        pytest.mark.fault("rank-hangs-at-a-checkpoint"),
        LONG,
    ),
    case(
        Hang("cache", 1, 1, "sleep", ("rank 1 (",), SLOW, "rank-hangs-in-start-up"),
        pytest.mark.fault("rank-hangs-in-start-up"),
        LONG,
    ),
]


@pytest.mark.parametrize("hang", HANGS)
def test_a_rank_hangs(hang: Hang, program: Program, config_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    limits = [f"distributed.hang_{name}_s={value}" for name, value in zip(("warn", "end"), hang.limits, strict=True)]
    argv = arguments(config_file, run, *limits, "checkpoint.every=5", "train.steps=40")
    started = start(program, argv, hang.rank, hang.phase, hang.entries, hang.how)
    other = started[1 - hang.rank]
    try:
        ended = other.wait(100)
    except AssertionError:
        started[hang.rank].send(signal.SIGKILL)  # a stopped process would stay
        raise
    if hang.how == "sleep":  # this process has a watchdog too
        assert started[hang.rank].wait(20).status == 1
    elif hang.rank == 1:  # on one host the rank that judges kills it
        assert started[hang.rank].wait(20).status == -signal.SIGKILL
    else:  # without torchrun nobody ends it
        started[hang.rank].send(signal.SIGKILL)
        started[hang.rank].wait(20)
    said = started[0].err.read_text() + started[1].err.read_text()
    for text in hang.said:
        assert text in said, said
    assert_seen(hang.fault, replace(ended, err=said), run)
    # A warning first, then the end; the stacks show where the rank was that waited.
    warned, _, stopped = said.partition("stopped: no progress for")
    assert (
        "Traceback" not in said
        and "warning: no progress for" in warned
        and ("checkpoint" in stopped or "does not answer" in said)
    )
    stacks = (run / f"hangs/rank_{1 - hang.rank:05d}.txt").read_text()
    assert "fusionseg/distributed/watchdog" in stacks and "train" in stacks
    if hang.phase != "cache":
        end = records(run)[-1]
        assert (end["kind"], end["status"]) == ("end", "hung") and "no progress for" in end["reason"]
    if hang.how == "sleep" and hang.phase != "cache":
        assert "in hang\n" in (run / f"hangs/rank_{hang.rank:05d}.txt").read_text()
    if hang.limits != SLOW:  # the run goes on from its checkpoint
        again = [program.warm(TRAIN, *argv, env=env) for env in rank_environments(2)]
        for process in again:
            process.wait().expect(0)
        assert records(run)[-1]["status"] == "completed"
        assert [r["step"] for r in records(run, "train")] == list(range(1, 41))
