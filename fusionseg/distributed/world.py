"""Ranks: which device is this one's own, and how ranks agree."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from fusionseg.distributed.launch import Launch, check_port, read_launch
from fusionseg.observability.ranges import annotate
from fusionseg.utils.errors import UserError

PREPARING = timedelta(days=7)  # how long ranks wait while rank 0 prepares data: as long as it takes


def choose_device(request: str, visible_gpus: int, launch: Launch) -> torch.device:
    """The device of this rank.

    Works where a node's GPUs are all visible to each process (torchrun) and where each process sees only its own
    (some SLURM set-ups mask them).

    Args:
        request: `auto`, `cuda` or `cpu`.
        visible_gpus: how many GPUs this process sees.

    Raises:
        UserError: there are fewer GPUs than processes.
    """
    if request == "cpu" or (request == "auto" and visible_gpus == 0):
        return torch.device("cpu")
    if visible_gpus == 0:
        raise UserError(
            "device: is cuda, and torch sees no GPU: set device: cpu, or look at CUDA_VISIBLE_DEVICES and the driver"
        )
    if visible_gpus == 1:
        return torch.device("cuda", 0)  # the only one: alone on it, or masked for each process
    if launch.local_rank >= visible_gpus:
        raise UserError(
            f"{launch.local_world_size} processes on {socket.gethostname()}, and {visible_gpus} GPUs visible: start"
            f" with --nproc_per_node={visible_gpus}, or set device: cpu"
        )
    return torch.device("cuda", launch.local_rank)


class World:
    """All ranks of the run, as seen from this one. Alone, every operation is a plain assignment."""

    def __init__(self, launch: Launch, device: torch.device) -> None:
        self.launch = launch
        self.device = device
        self._store: Store | None = None
        self._pending: tuple[Tensor, dist.Work] | None = None
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if launch.world_size > 1:
            self._join()

    @staticmethod
    def from_environment(device: str) -> World:
        launch = read_launch(os.environ)
        return World(launch, choose_device(device, torch.cuda.device_count(), launch))

    @property
    def rank(self) -> int:
        return self.launch.rank

    @property
    def size(self) -> int:
        return self.launch.world_size

    @property
    def is_rank_zero(self) -> bool:
        return self.launch.rank == 0

    def _join(self) -> None:
        # gloo beside NCCL: what the hosts say to each other must not wait for the devices.
        backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
        where = "env://"
        if self.launch.meeting is not None:
            host, port = self.launch.meeting
            where = f"tcp://{host}:{port}?rank={self.rank}&world_size={self.size}"
            if self.is_rank_zero:
                check_port(self.launch.meeting)
        store, rank, size = next(iter(rendezvous(where)))
        self._store = PrefixStore("fusionseg", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        self._refuse_shared_gpus()

    def _refuse_shared_gpus(self) -> None:
        own = ""
        if self.device.type == "cuda":
            own = f"{socket.gethostname()}/{torch.cuda.get_device_properties(self.device).uuid}"
        devices = self.all_gather_object(own)
        shared = sorted({device for device in devices if device and devices.count(device) > 1})
        if shared:
            raise UserError(
                f"several ranks are on one GPU ({', '.join(shared)}): start as many processes per node as it has"
                " GPUs (--nproc_per_node), or give each process its own CUDA_VISIBLE_DEVICES"
            )

    def rank_zero_first(self, name: str, work: Callable[[], None]) -> None:
        """Do `work` on rank 0 while the others wait, however long it takes."""
        if self._store is None:
            work()
        elif self.is_rank_zero:
            try:
                work()
            except BaseException:
                self._store.set(name, "failed")
                raise
            self._store.set(name, "done")
        else:
            self._store.wait([name], PREPARING)
            if self._store.get(name) != b"done":
                raise UserError(f"rank 0 could not {name}: see its message")

    def all_gather_object(self, value: Any) -> list[Any]:
        """The plain value of every rank, by rank; all ranks must call it."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Make device tensors those of rank 0, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def all_reduce_(self, values: Tensor) -> Tensor:
        """Sum a device tensor over the ranks, in place, in the device's own queue."""
        if self.size > 1:
            with annotate("allreduce"):
                dist.all_reduce(values)
        return values

    def any_rank_signalled(self, flag: int) -> int:
        """The highest flag of all ranks, the same on every rank; call it once a step.

        With several ranks the answer is that of the step before: this step's travels between the hosts while the
        devices compute, so that nobody waits for it.
        """
        if self.size == 1:
            return flag
        with annotate("allreduce"):
            agreed = self._collect()
        tensor = torch.tensor([flag])
        work = dist.all_reduce(tensor, op=dist.ReduceOp.MAX, async_op=True)
        assert work is not None
        self._pending = tensor, work
        return agreed

    def _collect(self) -> int:
        if self._pending is None:
            return 0
        tensor, work = self._pending
        self._pending = None
        work.wait()
        return int(tensor)

    def close(self) -> None:
        """Leave the process group."""
        if self.size > 1 and dist.is_initialized():
            self._collect()
            # gloo's threads take the GIL to let go of the last tensors, and the destructor that joins them holds it
            # (torch 2.13): sleeping hands it over first. Without this, 3 of 20 two-process runs never ended.
            time.sleep(0.2)
            dist.destroy_process_group()
