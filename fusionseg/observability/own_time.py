"""Time of a stream of a GPU for a rank's own work in a step, without the waits for other ranks."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from fusionseg.observability.stream_timer import StreamTimer


class OwnTime:
    """The time of the forward passes, and of the backward passes up to the end of their computation.

    With DDP, the backward pass ends with a wait for the gradients of the other ranks. So its end is marked by a
    callback of autograd, which runs after the last gradient is queued and before DDP lets the stream wait.

    Args:
        enabled: False measures nothing. On a CPU the phase times have the same, because the range `allreduce` holds the
            wait.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self._forward, self._backward = StreamTimer(enabled=enabled), StreamTimer(enabled=enabled)

    def forward(self) -> AbstractContextManager[None]:
        """Measure the body: a forward pass."""
        return self._forward if self.enabled else nullcontext()

    def backward(self, loss: Any) -> None:
        """Measure the next backward pass.

        Args:
            loss: the tensor whose `backward` is called next.
        """
        if self.enabled:
            loss.register_hook(self._begin_backward)

    def take(self) -> dict[str, float] | None:
        """Wait for the device and return the seconds of both since the last call; None if they are not measured."""
        if not self.enabled:
            return None
        return {"forward": self._forward.take() or 0.0, "backward": self._backward.take() or 0.0}

    def _begin_backward(self, _: Any) -> None:
        import torch  # takes seconds to import, and most users of this room do without

        self._backward.__enter__()
        # The engine calls it in the order of the queue: before DDP's own, which is queued with the last gradient.
        torch.autograd.Variable._execution_engine.queue_callback(self._end_backward)  # type: ignore[no-untyped-call]

    def _end_backward(self) -> None:
        self._backward.__exit__(None, None, None)
