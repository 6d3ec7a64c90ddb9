"""Gradient all-reduce of DistributedDataParallel (DDP) with an annotated range."""
# No `from __future__ import annotations` here: DDP compares the hook's annotations with the types themselves.

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from fusionseg.observability.ranges import annotate

Hook = Callable[[None, dist.GradBucket], Future[Tensor]]


def annotate_allreduce(model: DistributedDataParallel, device: torch.device) -> None:
    """Put DDP's all-reduce of the gradients into the range `allreduce`. The result stays the mean over the ranks.

    On a GPU the range shows when the host queues the all-reduce. A trace shows when the device runs it.

    On a CPU the range shows the part of the all-reduce that does not overlap with the backward pass. Each bucket is
    sent as soon as it is full. The hook waits for all of them when the last bucket is ready: at that point the backward
    pass is complete, and DDP itself would only wait.

    Args:
        model: the wrapped network; it must have no communication hook yet.
        device: device of the gradients.
    """
    model.register_comm_hook(None, _queue_hook if device.type == "cuda" else _make_waiting_hook())


def _queue_hook(state: None, bucket: dist.GradBucket) -> Future[Tensor]:
    with annotate("allreduce"):
        return allreduce_hook(state, bucket)  # type: ignore[arg-type]


def _make_waiting_hook() -> Hook:
    pending: list[tuple[dist.Work, Tensor, Future[Tensor]]] = []

    def hook(state: None, bucket: dist.GradBucket) -> Future[Tensor]:
        gradients = bucket.buffer().div_(dist.get_world_size())
        work = dist.all_reduce(gradients, async_op=True)
        assert work is not None
        future: Future[Tensor] = Future()
        pending.append((work, gradients, future))
        if bucket.is_last():
            with annotate("allreduce"):
                # Wait here instead of in callbacks: gloo's threads would need the GIL to run callbacks.
                for each_work, mean, each_future in pending:
                    each_work.wait()
                    each_future.set_result(mean)
            pending.clear()
        return future

    return hook
