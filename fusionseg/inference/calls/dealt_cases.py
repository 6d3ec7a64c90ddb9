"""The cases of an evaluation, dealt over the ranks of torchrun, or on request over the tasks of srun.

Rank 0 finds the cases and writes the results. Each rank predicts and scores its share. Work that can fail stands in
`World.wait_for_all` or `World.rank_zero_first`: the other ranks then end with a message that names the rank.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from fusionseg.data.formats.case import Case
from fusionseg.data.formats.readers import Readers
from fusionseg.distributed.launch import Launch
from fusionseg.distributed.world import HOST_TIMEOUT, World
from fusionseg.inference.calls.share import Share

log = logging.getLogger("fusionseg")

Value = TypeVar("Value")


def join_ranks(launch: Launch, request: str, *, join_tasks: bool) -> World:
    """Join the ranks of a launch. They exchange objects over gloo, and wait up to seven days for each other's cases.

    Args:
        launch: of this process; with a single rank nothing is opened.
        request: the work in words. Ranks with different work are a single rank each.
        join_tasks: join the tasks of srun. Without it each of them is a single rank: they may be independent, and
            need not make the same calls. The ranks of torchrun always join.

    Raises:
        UserError: the port of rank 0 is in use.
    """
    if launch.master is not None and not join_tasks:
        log.info("this task of srun evaluates its runs alone; --join-tasks divides their cases among the tasks")
        return _alone(launch)
    world = World(launch, torch.device("cpu"), HOST_TIMEOUT.total_seconds())
    if len(set(world.all_gather_object(request))) == 1:
        return world
    log.warning("the %d processes have different arguments: each does its own work alone", world.size)
    world.close()
    return _alone(launch)


def _alone(launch: Launch) -> World:
    """This process as a single rank, with its own GPU and its share of the host's memory."""
    return World(replace(launch, rank=0, world_size=1, master=None), torch.device("cpu"))


def single_rank() -> World:
    """The only rank of a process that deals no cases."""
    return World(Launch(), torch.device("cpu"))


def from_rank_zero(world: World, name: str, work: Callable[[], Value]) -> Value:
    """Do a piece of work on rank 0 alone, and return its result on every rank.

    Args:
        world: the ranks. All of them must call this function.
        name: the work in words, for the message; unique in the process.
        work: its result can be pickled.

    Raises:
        UserError: on the other ranks, if the work failed on rank 0.
    """
    results: list[Value] = []
    world.rank_zero_first(name, lambda: results.append(work()))
    result: Value = world.broadcast_object(results[0] if results else None)
    return result


def own_share(world: World, cases: Sequence[Case], readers: Readers) -> tuple[Case, ...]:
    """The cases of this rank, in their order. The shares have about the same size in bytes.

    Args:
        world: the ranks.
        cases: all cases.
        readers: of their images.
    """
    return Share(world.rank, world.size, world.launch).of(cases, readers)


def gathered(world: World, own: Mapping[str, Value], order: Iterable[str]) -> dict[str, Value]:
    """The results of the cases of all ranks, on every rank.

    Args:
        world: the ranks. All of them must call this function.
        own: results of the cases of this rank by name.
        order: names of all cases; the result has this order.
    """
    found: dict[str, Value] = {}
    for part in world.all_gather_object(dict(own)):
        found |= part
    return {name: found[name] for name in order if name in found}
