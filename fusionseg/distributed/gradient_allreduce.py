"""The gradients' way over the ranks, with a range of its own."""
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


def name_allreduce(model: DistributedDataParallel, device: torch.device) -> None:
    """Give the all-reduce of the gradients the range `allreduce`; what is computed stays DDP's own mean.

    On a GPU the range is where the host queues it, and a trace shows when it runs. On a CPU it is the part that the
    backward pass does not cover: every bucket is sent off as soon as it is full, and waited for when the last one is,
    at which point all gradients have been computed and DDP would do nothing but wait.
    """
    model.register_comm_hook(None, _queued if device.type == "cuda" else _waited_for())


def _queued(state: None, bucket: dist.GradBucket) -> Future[Tensor]:
    with annotate("allreduce"):
        return allreduce_hook(state, bucket)  # type: ignore[arg-type]


def _waited_for() -> Hook:
    under_way: list[tuple[dist.Work, Tensor, Future[Tensor]]] = []

    def hook(state: None, bucket: dist.GradBucket) -> Future[Tensor]:
        gradients = bucket.buffer().div_(dist.get_world_size())
        work = dist.all_reduce(gradients, async_op=True)
        assert work is not None
        under_way.append((work, gradients, Future()))
        result = under_way[-1][2]
        if bucket.is_last():
            with annotate("allreduce"):
                # Waited for here, and not by callbacks, which gloo's threads would have to take the GIL for.
                for each, mean, future in under_way:
                    each.wait()
                    future.set_result(mean)
            under_way.clear()
        return result

    return hook
