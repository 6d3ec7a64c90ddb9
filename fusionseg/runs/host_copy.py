"""Copies of a training state in the host's memory, in buffers that stay for the next copy."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import Tensor

from fusionseg.models.sharding.tensors import whole

log = logging.getLogger("fusionseg")

Place = tuple[Any, ...]
"""The keys and indices that lead to a tensor."""


class HostBuffers:
    """Buffers in the host's memory, one for each tensor of a state.

    The buffer of a tensor on a GPU is pinned: the copy is queued on the current stream, and the host does not wait.
    Training steps that are queued afterwards change the tensor after it was copied. Buffers are allocated once, because
    pinning takes longer than the copy.

    A tensor that is divided among the ranks is gathered before it is copied, one after the other, so that the device
    holds one whole tensor at a time. The other ranks take part by `gather_all`.
    """

    def __init__(self) -> None:
        self._buffers: dict[Place, Tensor] = {}
        self._pins = True

    def copy(self, state: Any) -> HostCopy:
        """Queue a copy of a state. The copy before it must not be in use any more.

        Args:
            state: nested dictionaries, lists and tuples with tensors on any device.
        """
        devices: set[torch.device] = set()
        content = self._copied((), state, devices)
        events = []
        for device in devices:
            with torch.cuda.device(device):
                event = torch.cuda.Event()
                event.record()  # type: ignore[no-untyped-call]
            events.append(event)
        return HostCopy(content, events)

    def _copied(self, place: Place, state: Any, devices: set[torch.device]) -> Any:
        if isinstance(state, Tensor):
            state = whole(state)
            if state.device.type == "cuda":
                devices.add(state.device)
            return self._buffer(place, state).copy_(state.detach(), non_blocking=True)
        if isinstance(state, dict):
            copied = copy.copy(state)  # a network's state_dict has the versions of its modules as an attribute
            copied.update((key, self._copied((*place, key), value, devices)) for key, value in state.items())
            return copied
        if isinstance(state, (list, tuple)):
            return type(state)(self._copied((*place, index), value, devices) for index, value in enumerate(state))
        return state

    def _buffer(self, place: Place, tensor: Tensor) -> Tensor:
        """The buffer of a place; a new one if there is none, or it has another shape, layout or type."""
        buffer = self._buffers.get(place)
        if buffer is None or (buffer.shape, buffer.dtype, buffer.stride()) != (
            tensor.shape,
            tensor.dtype,
            tensor.stride(),
        ):
            buffer = self._buffers[place] = self._allocate(tensor)
        return buffer

    def _allocate(self, tensor: Tensor) -> Tensor:
        if tensor.device.type == "cuda" and self._pins:
            try:
                return torch.empty_like(tensor, device="cpu", requires_grad=False, pin_memory=True)
            except RuntimeError as error:  # the system limits the memory that a process may pin
                self._pins = False
                log.warning("checkpoints: no pinned memory (%s); saving waits for the copy", str(error).split("\n")[0])
        return torch.empty_like(tensor, device="cpu", requires_grad=False)


class HostCopy:
    """A copy that may still be on its way from the GPU."""

    def __init__(self, content: Any, events: list[torch.cuda.Event]) -> None:
        self._content = content
        self._events = events

    def wait(self) -> Any:
        """Wait until the copy is complete, and return it."""
        for event in self._events:
            event.synchronize()
        return self._content
