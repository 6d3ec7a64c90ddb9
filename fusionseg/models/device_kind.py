"""The kind of device that a tensor is on, or that it stands for: tensors on the meta device stand for a GPU or a CPU.

Networks keep other tensors for the backward pass on a CPU than on a GPU. An estimate of the memory, which runs on the
meta device, chooses the device that it is for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_meta_kind: ContextVar[str] = ContextVar("meta_kind", default="cuda")


def device_kind(x: Tensor) -> str:
    """Return the type of the device of `x`, "cpu" or "cuda"; for a tensor on the meta device, the one it stands for."""
    return _meta_kind.get() if x.is_meta else x.device.type


def autocast_kind(x: Tensor) -> str:
    """Return the type of the device whose autocast applies to `x`.

    There is no autocast for the meta device. An estimate of the memory replaces it (`fusionseg.training.memory`), and
    switches on that of the CPU, so that it is known to be on.
    """
    return "cpu" if x.is_meta else x.device.type


@contextmanager
def meta_stands_for(kind: str) -> Iterator[None]:
    """Let tensors on the meta device stand for tensors on another device.

    Args:
        kind: "cuda", the default, or "cpu".
    """
    token = _meta_kind.set(kind)
    try:
        yield
    finally:
        _meta_kind.reset(token)
