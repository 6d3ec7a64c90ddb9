"""Process group: the device of this rank and the collectives between ranks."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store

from fusionseg.distributed.launch import Launch, gloo_interface, read_launch
from fusionseg.distributed.messages.store_messages import StoreMessages
from fusionseg.distributed.rendezvous import open_store
from fusionseg.distributed.watchdog.beat import Progress
from fusionseg.distributed.watchdog.watchdog import Limits, Watchdog
from fusionseg.observability.ranges import annotate
from fusionseg.utils.errors import UserError

HOST_TIMEOUT = timedelta(days=7)
"""Time that ranks wait in `rank_zero_first` and `wait_for_all`; preparing a large data set can take many hours."""
COLLECTIVE_TIMEOUT_S = 1800
"""Default time limit of a collective operation in seconds; that of the configuration is `distributed.timeout_s`."""
_WARN_S = 60.0
"""Seconds between two warnings that ranks are missing at the start, without a watchdog."""


def choose_device(request: str, visible_gpus: int, launch: Launch) -> torch.device:
    """Choose the device of this rank.

    The GPUs of a node may all be visible to each process (torchrun), or each process may see only its own GPU (some
    SLURM clusters mask the others).

    Args:
        request: `auto`, `cuda` or `cpu`.
        visible_gpus: number of GPUs that this process sees.
        launch: its local rank is the index of the GPU where several are visible.

    Raises:
        UserError: there is no GPU for `cuda`, or there are fewer GPUs than processes.
    """
    if request == "cpu" or (request == "auto" and visible_gpus == 0):
        return torch.device("cpu")
    if visible_gpus == 0:
        raise UserError(
            "device: cuda is not possible, torch sees no GPU; set device: cpu, or check CUDA_VISIBLE_DEVICES and the"
            " driver"
        )
    if visible_gpus == 1:
        return torch.device("cuda", 0)  # a single process, or the other GPUs are masked
    if launch.local_rank >= visible_gpus:
        raise UserError(
            f"device: {launch.local_world_size} processes on {socket.gethostname()}, but only {visible_gpus} GPUs are"
            f" visible; start with --nproc_per_node={visible_gpus}, or set device: cpu"
        )
    return torch.device("cuda", launch.local_rank)


class World:
    """The ranks of a run: this rank's number and device, and collectives between all ranks.

    With a single rank, every collective returns its argument at once.
    """

    def __init__(
        self,
        launch: Launch,
        device: torch.device,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        limits: Limits | None = None,
    ) -> None:
        """Join the process group if there are several ranks.

        Args:
            launch: rank, world size and the address of rank 0.
            device: device of this rank; it becomes the current CUDA device.
            timeout_s: seconds that a collective operation waits for the other ranks.
            limits: of the watchdog; None starts no watchdog.

        Raises:
            UserError: the port of rank 0 is in use, or several ranks are on one GPU.
        """
        self.launch = launch
        self.device = device
        self.progress = Progress()
        self.watchdog: Watchdog | None = None
        self._limits = limits
        self._store: Store | None = None
        self._pending: tuple[Tensor, dist.Work] | None = None
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if launch.world_size > 1:
            self._init_process_group(timedelta(seconds=timeout_s))
        else:
            self._start_watchdog(None)

    @staticmethod
    def from_environment(device: str, timeout_s: float = COLLECTIVE_TIMEOUT_S, limits: Limits | None = None) -> World:
        """Join the ranks that torchrun or srun started.

        Args:
            device: `auto`, `cuda` or `cpu`.
            timeout_s: seconds that a collective operation waits for the other ranks.
            limits: of the watchdog; None starts no watchdog.

        Raises:
            UserError: the environment is incomplete or names no valid launch, or a GPU is missing or shared.
        """
        launch = read_launch(os.environ)
        return World(launch, choose_device(device, torch.cuda.device_count(), launch), timeout_s, limits)

    @property
    def rank(self) -> int:
        return self.launch.rank

    @property
    def size(self) -> int:
        return self.launch.world_size

    @property
    def is_rank_zero(self) -> bool:
        return self.launch.rank == 0

    def _init_process_group(self, timeout: timedelta) -> None:
        # Objects and flags go over gloo, device tensors over NCCL: messages between hosts must not wait for the GPUs.
        on_gpu = self.device.type == "cuda"
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        if interface := gloo_interface(os.environ, [name for _, name in socket.if_nameindex()]):
            os.environ["GLOO_SOCKET_IFNAME"] = interface
        warn_s = _WARN_S if self._limits is None else self._limits.warn_s
        store = open_store(self.launch, timeout, warn_s)
        self._store = PrefixStore("fusionseg", store)
        self._start_watchdog(self._store)
        if on_gpu and self._limits is not None:  # NCCL records its last operations; the watchdog writes them
            os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
        with self.waiting():
            self._refuse_shared_gpus(self._store, timeout)
        # With `device_id`, NCCL connects the ranks here and never guesses the device of a rank.
        device_id = self.device if on_gpu else None
        dist.init_process_group(
            backend, store=store, rank=self.rank, world_size=self.size, timeout=timeout, device_id=device_id
        )

    def _start_watchdog(self, store: Store | None) -> None:
        if self._limits is not None:
            self.watchdog = Watchdog(self.progress, self._limits, self.rank, self.size, store)
            self.watchdog.beat()
            self.watchdog.start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While entered, this rank does nothing but wait for other ranks; the watchdog does not look for it."""
        self.progress.waits = True
        try:
            yield
        finally:
            self.progress.waits = False

    def _refuse_shared_gpus(self, store: Store, timeout: timedelta) -> None:
        """Compare the devices of the ranks before NCCL connects them: its own error names no GPU."""
        own = ""
        if self.device.type == "cuda":
            own = f"{socket.gethostname()}/{torch.cuda.get_device_properties(self.device).uuid}"
        store.set(f"device of rank {self.rank}", own)
        keys = [f"device of rank {rank}" for rank in range(self.size)]
        store.wait(keys, timeout)
        devices = [store.get(key).decode() for key in keys]
        shared = sorted({device for device in devices if device and devices.count(device) > 1})
        if shared:
            raise UserError(
                f"device: several ranks use the same GPU ({', '.join(shared)}); start one process per GPU"
                " (--nproc_per_node), or give each process its own CUDA_VISIBLE_DEVICES"
            )

    def rank_zero_first(self, name: str, work: Callable[[], None]) -> None:
        """Run `work` on rank 0 while the other ranks wait, up to seven days. All ranks must call this method.

        Args:
            name: the work in words, such as "open the run folder", for the message; unique in the run.
            work: called on rank 0 alone.

        Raises:
            UserError: on the other ranks, if `work` raised an exception on rank 0.
        """
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
            with self.waiting():
                self._store.wait([name], HOST_TIMEOUT)
            if self._store.get(name) != b"done":
                raise UserError(f"rank 0 could not {name}; see the message of rank 0")

    @contextmanager
    def wait_for_all(self, name: str) -> Iterator[None]:
        """Run the body on every rank, and wait until all ranks have done so, up to seven days.

        The ranks wait for a key of the store and for no device: a rank that is much slower than the others does not
        exceed the time limit of a collective operation. The body itself may hold collective operations.

        Args:
            name: the work in words, such as "load the cache", for the message; unique in the run.

        Raises:
            UserError: on the ranks that had no exception themselves, if the body raised one on another rank.
        """
        if self._store is None:
            yield
            return
        try:
            yield
        except BaseException:
            self._store.set(name, f"rank {self.rank}")
            raise
        if self._store.add(f"{name}: ranks", 1) == self.size:
            self._store.set(name, "done")
        with self.waiting():
            self._store.wait([name], HOST_TIMEOUT)
        if (state := self._store.get(name)) != b"done":
            failed = state.decode()
            raise UserError(f"{failed} could not {name}; see the message of {failed}")

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in the order of the ranks. All ranks must call this method.

        Args:
            value: any object that can be pickled; tensors must be on the CPU.
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self.waiting():
            dist.all_gather_object(values, value)
        return values

    def broadcast_object(self, value: Any) -> Any:
        """Return the value of rank 0 on every rank. All ranks must call this method.

        Args:
            value: any object that can be pickled; only that of rank 0 is used.
        """
        if self.size == 1:
            return value
        objects = [value]
        with self.waiting():
            dist.broadcast_object_list(objects, src=0, device=torch.device("cpu"))
        return objects[0]

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite device tensors with those of rank 0, in place. All ranks must call this method."""
        if self.size > 1:
            with self.waiting():
                for tensor in tensors:
                    dist.broadcast(tensor, src=0)

    def all_reduce_(self, values: Tensor) -> Tensor:
        """Sum a device tensor over the ranks, in place. All ranks must call this method.

        On a GPU the sum is queued on the current stream; the host does not wait for it.
        """
        if self.size > 1:
            with annotate("allreduce"), self.waiting():
                dist.all_reduce(values)
        return values

    def any_rank_signalled(self, flag: int) -> int:
        """Return the maximum over the ranks of the flag of the previous call. All ranks must call it once a step.

        The result is the same on every rank. It is one step late: the flag of this step is reduced between the hosts
        while the devices compute, so that no rank waits. A single rank returns its flag at once.

        Args:
            flag: 0 for no signal; higher values have priority.
        """
        if self.size == 1:
            return flag
        with annotate("allreduce"), self.waiting():
            previous = self._wait_for_flag()
        tensor = torch.tensor([flag])
        work = dist.all_reduce(tensor, op=dist.ReduceOp.MAX, async_op=True)
        assert work is not None
        self._pending = tensor, work
        return previous

    def _wait_for_flag(self) -> int:
        if self._pending is None:
            return 0
        tensor, work = self._pending
        self._pending = None
        work.wait()
        return int(tensor)

    def open_messages(self) -> StoreMessages | None:
        """Open a connection to the store for messages between threads of the ranks; None for a single rank.

        All ranks must call this method. They do not see the messages of an earlier call.
        """
        name = self.broadcast_object(uuid.uuid4().hex)
        return None if self._store is None else StoreMessages(PrefixStore(name, self._store), self.rank, self.size)

    def hold(self) -> None:
        """After an error: wait for the end of this process if the watchdog is about to end it."""
        if self.watchdog is not None:
            self.watchdog.hold()

    def stop_watching(self) -> None:
        """End the watchdog of this rank: its part of the run is done."""
        if self.watchdog is not None:
            self.watchdog.close()

    def close(self) -> None:
        """End the watchdog, and leave the process group."""
        self.stop_watching()
        if self.size > 1 and dist.is_initialized():
            with suppress(RuntimeError):  # another rank has died: the first error tells more than this one
                self._wait_for_flag()
            # gloo's threads need the GIL to release the last tensors, but the destructor that joins these threads holds
            # it (torch 2.13). Sleeping releases the GIL first. Without it, 3 of 20 runs of two processes hung at exit.
            time.sleep(0.2)
            dist.destroy_process_group()
