"""Operations and memory traffic of operators, and the least time that they take on a device.

*Operations* are those of matrix products, convolutions and attention, with two for each multiply-add (formulas of
torch.utils.flop_counter). Elementwise operators count zero operations.

*Bytes* assume that an operator reads each input tensor once and writes each output tensor once. A view moves nothing, a
broadcast input counts its stored elements, and a tensor that is changed in place is read and written. A kernel that
reads its input twice therefore moves more bytes than stated here, and one whose input is in a cache moves fewer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


@dataclass(frozen=True)
class Call:
    """One call of an operator."""

    phase: str
    kind: str
    """Name of the operator in aten, without the overload."""
    flops: int
    """Operations; a multiply-add counts as two."""
    bytes: int
    seconds: float

    def bound_s(self, flops_per_s: float, bytes_per_s: float) -> float:
        """Least possible time in seconds on a device with these rates, see `least_s`."""
        return least_s(self.flops, self.bytes, flops_per_s, bytes_per_s)


@dataclass(frozen=True)
class Cost:
    """Total of several calls."""

    calls: int
    flops: int
    bytes: int
    bound_s: float
    """Sum of the bounds of the calls; calls are assumed not to overlap."""
    compute_bound_s: float
    """Part of `bound_s` that comes from calls limited by operations rather than by bytes."""
    seconds: float

    @property
    def intensity(self) -> float:
        """Arithmetic intensity: operations per byte."""
        return self.flops / self.bytes if self.bytes else 0.0

    @property
    def limited_by(self) -> str:
        """Resource that causes most of the bound: "operations" or "bytes"."""
        return "operations" if self.compute_bound_s > self.bound_s / 2 else "bytes"


def least_s(flops: float, moved: float, flops_per_s: float, bytes_per_s: float) -> float:
    """Return the least time in seconds of an operator on a device (Williams et al., "Roofline", 2009).

    Args:
        flops: operations of the operator.
        moved: bytes that it reads and writes.
        flops_per_s: operations per second of the device.
        bytes_per_s: memory bandwidth of the device in bytes per second.
    """
    return max(flops / flops_per_s, moved / bytes_per_s)


def total_cost(calls: Iterable[Call], flops_per_s: float, bytes_per_s: float) -> Cost:
    """Add up calls on a device with these rates.

    Args:
        calls: calls of operators.
        flops_per_s: operations per second of the device.
        bytes_per_s: memory bandwidth of the device in bytes per second.
    """
    count, flops, moved, bound_s, compute_s, seconds = 0, 0, 0, 0.0, 0.0, 0.0
    for call in calls:
        own = call.bound_s(flops_per_s, bytes_per_s)
        count, flops, moved = count + 1, flops + call.flops, moved + call.bytes
        bound_s, seconds = bound_s + own, seconds + call.seconds
        if call.flops / flops_per_s > call.bytes / bytes_per_s:
            compute_s += own
    return Cost(count, flops, moved, bound_s, compute_s, seconds)


def operations(func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> int:
    """Count the operations of a call, two for each multiply-add; 0 for an operator without matrix products.

    Args:
        func: operator overload, such as torch.ops.aten.mm.default.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        result: value that the call returned.
    """
    # torch has no formula for the fused attention of CPUs.
    if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
        return int(sdpa_flop_count(*(tensor.shape for tensor in args[:3])))
    if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default:
        return int(sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4])))
    packet = func.overloadpacket
    # torch has formulas for addmm and baddbmm only; addmm_ and baddbmm_ do the same operations in place.
    out_of_place = getattr(torch.ops.aten, packet.__name__.removesuffix("_"), None)
    formula = flop_registry.get(packet) or flop_registry.get(out_of_place)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=result))


def bytes_moved(func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> int:
    """Count the bytes that a call reads and writes, each tensor once.

    Args:
        func: operator overload, such as torch.ops.aten.mm.default.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        result: value that the call returned.
    """
    schema = func._schema
    if func.namespace != "aten" or schema.name.split("::")[1].startswith(("empty", "new_empty")):
        return 0
    given: list[Tensor] = []
    moved = 0
    for position, argument in enumerate(schema.arguments):
        value = kwargs.get(argument.name) if position >= len(args) else args[position]
        tensors = [leaf for leaf in _pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
        given += tensors
        changed = argument.alias_info is not None and argument.alias_info.is_write
        # A tensor that is only overwritten is not read.
        read = not (changed and (argument.is_out or func.overloadpacket.__name__ in ("copy_", "fill_", "zero_")))
        moved += sum(_size(tensor) for tensor in tensors) * (read + changed)
    memory = {tensor.untyped_storage()._cdata for tensor in given}
    made = [leaf for leaf in _pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    new = [tensor for tensor in made if tensor.untyped_storage()._cdata not in memory]
    if made and not new and not schema.is_mutable:
        return 0  # a view of its input
    return moved + sum(_size(tensor) for tensor in new)


def _size(tensor: Tensor) -> int:
    """Bytes of the stored elements; a broadcast axis stores one element."""
    own = prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or not size)
    return own * tensor.element_size()
