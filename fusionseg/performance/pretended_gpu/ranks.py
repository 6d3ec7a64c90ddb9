"""Pretended ranks: the process group of several ranks in one process, whose collective operations move nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import _create_work_from_future  # type: ignore[attr-defined]
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed import device_mesh
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from fusionseg.distributed.launch import Launch
from fusionseg.distributed.world import World
from fusionseg.training.memory.shard_units import find_units

_BACKEND = "pretended"
_init_device_mesh = device_mesh.init_device_mesh
_operators = torch.library.Library("collective", "DEF")
for _name in ("all_reduce", "all_gather", "reduce_scatter", "broadcast"):
    _operators.define(f"{_name}(Tensor(a!) tensor) -> ()")
    _operators.impl(_name, lambda tensor: None, "CompositeExplicitAutograd")


class PretendedGroup(dist.ProcessGroup):
    """A process group whose other ranks do nothing. Each collective operation is an operator that is counted."""

    def allreduce(self, tensors: Any, *_: Any) -> dist.Work:  # type: ignore[override]
        return _done(torch.ops.collective.all_reduce, tensors)

    def broadcast(self, tensors: Any, *_: Any) -> dist.Work:  # type: ignore[override]
        return _done(torch.ops.collective.broadcast, tensors)

    def all_gather_single(self, output: Tensor, *_: Any) -> dist.Work:
        return _done(torch.ops.collective.all_gather, [output])

    def reduce_scatter_single(self, output: Tensor, *_: Any) -> dist.Work:
        return _done(torch.ops.collective.reduce_scatter, [output])

    def _allgather_base(self, output: Tensor, *_: Any) -> dist.Work:  # its name before torch 2.13
        return self.all_gather_single(output)

    def _reduce_scatter_base(self, output: Tensor, *_: Any) -> dist.Work:  # its name before torch 2.13
        return self.reduce_scatter_single(output)

    @property
    def group_name(self) -> Any:
        """The name of the group, which torch does not keep for a group in Python."""
        return dist.distributed_c10d._world.pg_names[self]

    def getBackendName(self) -> str:
        return _BACKEND


class PretendedWorld(World):
    """Rank 0 of several ranks, of which the others are pretended: each of them has the objects of this one."""

    def _init_process_group(self, timeout: timedelta) -> None:
        dist.init_process_group(_BACKEND, store=dist.HashStore(), rank=0, world_size=self.size, timeout=timeout)

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return the value once for each rank."""
        return [value] * self.size

    def broadcast_object(self, value: Any) -> Any:
        """Return the value."""
        return value


@contextmanager
def pretended_ranks(count: int, device: torch.device) -> Iterator[World]:
    """Join a number of ranks, one of which is real.

    Args:
        count: the number of ranks.
        device: of this rank.
    """
    if count == 1:
        yield World(Launch(), device)
        return
    if _BACKEND not in dist.Backend.backend_list:
        dist.Backend.register_backend(_BACKEND, _make_group, devices=["cpu", "cuda"])
    replaced: dict[str, Any] = {
        # DDP compares the shapes of the weights on all ranks, which would read values.
        "torch.nn.parallel.distributed._verify_param_shape_across_processes": lambda *_: True,
        # Each rank is on a node of its own: the ranks of a node would share a file in memory.
        "fusionseg.training.opened_data.cache.share_memory": lambda *_: None,
        # The first step with a static graph compares addresses in memory. The later steps are the same without it.
        "fusionseg.training.network.DistributedDataParallel": _make_ddp,
        # Both read values, of ranks and of the meta device, and launch nothing.
        "torch.distributed.device_mesh.init_device_mesh": _make_mesh,
        "fusionseg.training.start.find_units": _really(find_units),
    }
    with ExitStack() as stack:
        for name, value in replaced.items():
            stack.enter_context(patch(name, value))
        try:
            yield PretendedWorld(Launch(0, count, 0, 1), device)
        finally:
            dist.destroy_process_group()


def _make_ddp(model: nn.Module, **settings: Any) -> DistributedDataParallel:
    """Wrap a network by DDP, without what DDP cannot do on fake tensors.

    After the first step DDP sorts the gradients into buckets again, in the order in which they were ready. For that it
    reads values. So the buckets of its construction stay, whose number and sizes are about the same. It also logs the
    times of its steps, which are not known.
    """
    wrapped = DistributedDataParallel(model, **{**settings, "static_graph": False})
    wrapped.reducer = _Instead(wrapped.reducer, _rebuild_buckets=lambda: False)
    logger: Any = _Instead(wrapped.logger, set_runtime_stats_and_log=lambda: None)
    wrapped.logger = logger
    return wrapped


def _make_mesh(*arguments: Any, **settings: Any) -> device_mesh.DeviceMesh:
    # The world has set its device. torch would set that of the rank, of which there is one.
    with unset_fake_temporarily(), patch("torch.cuda.is_initialized", lambda: True):
        return _init_device_mesh(*arguments, **settings)


def _really(function: Any) -> Any:
    """Call a function without fake tensors."""

    @wraps(function)
    def called(*arguments: Any, **settings: Any) -> Any:
        with unset_fake_temporarily():
            return function(*arguments, **settings)

    return called


class _Instead:
    """An object of which some methods are replaced."""

    def __init__(self, original: Any, **methods: Any) -> None:
        self._original = original
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def _make_group(store: dist.Store, rank: int, size: int, timeout: timedelta) -> PretendedGroup:
    return PretendedGroup(rank, size)  # type: ignore[call-arg]


def _done(operator: Any, tensors: Sequence[Tensor]) -> dist.Work:
    for tensor in tensors:
        operator(tensor)
    future: Future[Any] = Future()
    future.set_result(list(tensors))
    work: dist.Work = _create_work_from_future(future)
    return work
