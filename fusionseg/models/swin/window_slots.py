"""Copies of tokens to the slots of attention windows, and back; the gradient of each copy is the other one.

Every token has one slot. So the gradient is an `index_select` too, where autograd has a scattered addition, which is
slower.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from fusionseg.models.device_kind import device_kind


class Slots(Protocol):
    """Assignment of T tokens to S slots of windows, and back.

    The classes that implement it have plain attributes: torch.compile cannot read properties of a layout.
    """

    @property
    def index(self) -> Tensor:
        """(S): token of each slot; the value T is padding."""

    @property
    def slot(self) -> Tensor:
        """(T): slot of each token."""

    @property
    def padded(self) -> Tensor:
        """Slots of the padding."""


def to_slots(x: Tensor, slots: Slots, padding: Tensor | None = None) -> Tensor:
    """Copy tokens to the slots of the windows.

    Args:
        x: tokens (..., T, C).
        slots: the slots.
        padding: value of the padding (C); None for 0.

    Returns:
        (..., S, C).
    """
    if slots.padded.numel():
        row = _zeros(x) if padding is None else padding
        x = torch.cat([x, row.expand(*x.shape[:-2], 1, -1)], dim=-2)
    return x.index_select(-2, slots.index)


def from_slots(x: Tensor, slots: Slots) -> Tensor:
    """Copy the slots of the windows (..., S, C) back to tokens (..., T, C)."""
    return x.index_select(-2, slots.slot)


class ToSlots(torch.autograd.Function):
    """`to_slots` with a padding of 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Slots) -> Tensor:
        ctx.slots = slots
        return to_slots(x, slots)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return from_slots(grad, ctx.slots), None


class FromSlots(torch.autograd.Function):
    """`from_slots`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Slots) -> Tensor:
        ctx.slots = slots
        return from_slots(x, slots)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return to_slots(grad, ctx.slots), None


def _zeros(x: Tensor) -> Tensor:
    """Return zeros (C). On a GPU they are made once: an operator costs time for its launch."""
    if device_kind(x) == "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return x.new_zeros(x.shape[-1])
    return _kept_zeros(x.shape[-1], x.dtype, x.device)


@cache
def _kept_zeros(channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros(channels, dtype=dtype, device=device)
