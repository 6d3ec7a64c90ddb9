"""Gradient all-reduce of DistributedDataParallel (DDP): its range, and the exchange in 16 bits."""
# No `from __future__ import annotations` here: DDP compares the hook's annotations with the types themselves.

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, bf16_compress_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from fusionseg.observability.ranges import annotate

Hook = Callable[[None, dist.GradBucket], Future[Tensor]]


def register_allreduce(model: DistributedDataParallel, device: torch.device, *, bf16: bool, ranges: bool) -> None:
    """Choose the way in which DDP averages the gradients over the ranks.

    On a GPU, DDP's own all-reduce is kept unless `ranges` or `bf16` asks for a hook in Python, which runs once for each
    bucket. The range `allreduce` then shows when the host queues the all-reduce. A trace shows when the device runs it.

    On a CPU there is always a hook, and the range shows the part of the all-reduce that does not overlap with the
    backward pass. Each bucket is sent as soon as it is full. The hook waits for all of them when the last bucket is
    ready: at that point the backward pass is complete, and DDP itself would only wait.

    Args:
        model: the wrapped network; it must have no communication hook yet.
        device: device of the gradients.
        bf16: send the gradients in bfloat16, in which they are added too.
        ranges: put each all-reduce on a GPU into a range.
    """
    if device.type != "cuda":
        model.register_comm_hook(None, _make_waiting_hook(torch.bfloat16 if bf16 else None))
    elif ranges:
        model.register_comm_hook(None, _queue_bf16_hook if bf16 else _queue_hook)
    elif bf16:
        model.register_comm_hook(None, bf16_compress_hook)


def _queue_hook(state: None, bucket: dist.GradBucket) -> Future[Tensor]:
    with annotate("allreduce"):
        return allreduce_hook(state, bucket)  # type: ignore[arg-type]


def _queue_bf16_hook(state: None, bucket: dist.GradBucket) -> Future[Tensor]:
    with annotate("allreduce"):
        return bf16_compress_hook(state, bucket)  # type: ignore[arg-type]


def _make_waiting_hook(dtype: torch.dtype | None) -> Hook:
    pending: list[tuple[dist.Work, Tensor, Tensor, Future[Tensor]]] = []

    def hook(state: None, bucket: dist.GradBucket) -> Future[Tensor]:
        buffer = bucket.buffer()
        sent = (buffer if dtype is None else buffer.to(dtype)).div_(dist.get_world_size())
        work = dist.all_reduce(sent, async_op=True)
        assert work is not None
        future: Future[Tensor] = Future()
        pending.append((work, sent, buffer, future))
        if bucket.is_last():
            with annotate("allreduce"):
                # Wait here instead of in callbacks: gloo's threads would need the GIL to run callbacks.
                for each_work, mean, each_buffer, each_future in pending:
                    each_work.wait()
                    each_future.set_result(mean if mean is each_buffer else each_buffer.copy_(mean))
            pending.clear()
        return future

    return hook
