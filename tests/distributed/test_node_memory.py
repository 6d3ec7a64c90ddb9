"""Memory that the ranks of a node share: every rank sees what one has written, and the node holds it once."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from end_to_end.runs import Program, rank_environments

from fusionseg.distributed import node_memory
from fusionseg.distributed.launch import read_launch
from fusionseg.distributed.world import World

SIZE = 32 << 20


def proportional_bytes() -> int:
    """Memory of this process, where a page of several processes counts in part."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss_Shmem:"))


def rank(folder: str) -> None:
    world = World.from_environment("cpu")
    before = proportional_bytes()
    memory = node_memory.share_memory(world, SIZE)
    assert memory is not None
    with world.wait_for_all("fill"):
        if memory.writes:
            memory.bytes.fill_(7)
    read = int((memory.bytes == 7).sum())
    with world.wait_for_all("read"):
        pass
    held = proportional_bytes() - before
    maps = Path("/proc/self/maps").read_text(encoding="ascii").count("fusionseg-cache")
    torch.save((memory.writes, read, held, maps), f"{folder}/{world.rank}.pt")
    with world.wait_for_all("measure"):
        pass
    world.close()


def test_a_node_holds_it_once(tmp_path: Path) -> None:
    program = Program(tmp_path)
    for process in [program.function(rank, (str(tmp_path),), env) for env in rank_environments(2)]:
        process.wait().expect(0)
    found = [torch.load(tmp_path / f"{number}.pt") for number in range(2)]
    assert [writes for writes, *_ in found] == [True, False]
    assert sum(held for _, _, held, *_ in found) == pytest.approx(SIZE, rel=0.1)
    for _, read, _, maps in found:
        assert (read, maps) == (SIZE, 1)


def test_a_rank_alone_shares_nothing() -> None:
    assert node_memory.share_memory(World(read_launch({}), torch.device("cpu")), SIZE) is None


def test_the_file_of_another_process_is_recognised(tmp_path: Path) -> None:
    """In another container, the number of a process and its descriptor may belong to another file."""
    with open(tmp_path / "file", "wb") as file:
        state = os.fstat(file.fileno())
        own = node_memory._File(os.getpid(), file.fileno(), (state.st_dev, state.st_ino))
        descriptor = node_memory._open(own)
        assert descriptor is not None
        os.close(descriptor)
        assert node_memory._open(replace(own, identity=(state.st_dev, state.st_ino + 1))) is None
    assert node_memory._open(replace(own, descriptor=10**6)) is None
