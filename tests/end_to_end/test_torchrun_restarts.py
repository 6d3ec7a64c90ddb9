"""torchrun with --max-restarts: killed ranks come back, and ranks without their torchrun save and end."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest
from faults.catalogue import assert_seen

from end_to_end.conftest import arguments
from end_to_end.runs import TRAIN, Program, Started, assert_same_run, checkpoint, ranks_of, records, wait_for_step

ENDLESS = ("train.steps=100000", "validate.every=100000", "checkpoint.every=50")
STOPPED = "torchrun has ended"


def torchrun(program: Program, command: Sequence[str], *options: str, ranks: int = 2) -> Started:
    launcher = ("-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--max-restarts=3", *options)
    return program.fresh(*launcher, "-m", TRAIN, *command)


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = 120) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"not in {limit_s} s: {what}"
        time.sleep(0.05)


def started_again(run: Path, begun: float) -> bool:
    """Tell whether a later start has opened the run; each writes environment.json."""
    return (run / "environment.json").stat().st_mtime > begun


def kill_and_wait(agent: Started, rank: int, run: Path, *agents: Started) -> None:
    """Kill a rank, and wait until the next start trains."""
    begun = (run / "environment.json").stat().st_mtime
    ranks_of(agent)[rank].kill()
    wait_until(lambda: started_again(run, begun), "a second start")
    step = max((record["step"] for record in records(run, "train")), default=0)
    wait_for_step(run, step + 5, [agent, *agents])


@pytest.mark.fault("rank-killed-with-restarts", "torchrun-killed")
def test_killed_rank_comes_back_and_a_killed_torchrun_leaves_nothing(
    program: Program, config_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    agent = torchrun(program, arguments(config_file, run, *ENDLESS), "--standalone")
    wait_for_step(run, 60, [agent])
    kill_and_wait(agent, 1, run)

    ranks = ranks_of(agent)
    agent.send(signal.SIGKILL)
    gone, alive = psutil.wait_procs(ranks, timeout=60)
    assert len(gone) == 2 and not alive
    end = records(run)[-1]
    assert (end["kind"], end["status"], end["reason"]) == ("end", "interrupted", STOPPED)
    assert checkpoint(run)["step"] == end["step"]
    ended = agent.wait()
    err = ended.err
    assert_seen("rank-killed-with-restarts", err, run)
    assert_seen("torchrun-killed", ended, run)
    assert "torchrun has ended before its ranks" in err
    assert "failed (another rank has ended (Connection " in err and "Traceback" not in err


@pytest.mark.long
def test_killed_ranks_come_back_ten_times(program: Program, config_file: Path, tmp_path: Path) -> None:
    """Rank 0 and rank 1 in turn. The records are those of a run that nobody has disturbed."""
    options = ("train.steps=400", "validate.every=100", "checkpoint.every=20")
    torchrun(program, arguments(config_file, tmp_path / "whole", *options), "--standalone").wait().expect(0)
    for number in range(10):
        run = tmp_path / f"run{number}"
        agent = torchrun(program, arguments(config_file, run, *options), "--standalone")
        wait_for_step(run, 15 * number + 5, [agent])
        ranks_of(agent)[number % 2].kill()
        agent.wait(300).expect(0)
        assert_same_run(run, tmp_path / "whole")


# In torch 2.13, a torchrun that was started again finds no address of a store that the others have kept.
C10D = ("--rdzv-backend=c10d", "--rdzv-id=1", "--rdzv-endpoint=127.0.0.1:{port}")
STATIC = ("--node-rank={node}", "--master-addr=127.0.0.1", "--master-port={port}")
NETWORKS = {"shared store": (C10D, "0"), "own store": (C10D, "1"), "static": (STATIC, "0")}


@pytest.mark.long
@pytest.mark.parametrize("network", NETWORKS)
def test_two_nodes(
    program: Program, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str
) -> None:
    """Two torchruns: a rank of each is killed, then a torchrun, which is started again."""
    run = tmp_path / "run"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = arguments(config_file, run, *ENDLESS, "train.global_batch=4")
    options, own_store = NETWORKS[network]
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", own_store)

    def node(number: int) -> Started:
        return torchrun(program, command, "--nnodes=2", *(text.format(node=number, port=port) for text in options))

    first = node(0)
    time.sleep(1)  # the first one has the store of the rendezvous
    second = node(1)
    wait_for_step(run, 60, [first, second])
    kill_and_wait(second, 1, run, first)
    kill_and_wait(first, 0, run, second)

    left, agents = [*ranks_of(first), *ranks_of(second)], [first, second]
    if network != "shared store":
        begun = (run / "environment.json").stat().st_mtime
        second.send(signal.SIGKILL)
        gone, alive = psutil.wait_procs(left[2:], timeout=60)
        assert len(gone) == 2 and not alive
        third = node(1)
        wait_until(lambda: started_again(run, begun), "a start with the new torchrun", 180)
        step = max(record["step"] for record in records(run, "train"))
        wait_for_step(run, step + 5, [first, third])
        left, agents = [*ranks_of(first), *ranks_of(third)], [first, third]

    for agent in agents:
        agent.send(signal.SIGKILL)
    gone, alive = psutil.wait_procs(left, timeout=60)
    assert len(gone) == 4 and not alive
    assert records(run)[-1]["reason"] == STOPPED
