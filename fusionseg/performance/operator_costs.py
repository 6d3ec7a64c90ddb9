"""What a training step makes the device do: the operations and bytes of every operator, phase by phase.

Two models, both stated so that they can be argued with. *Operations* are those of matrix products, convolutions and
attention, two for each multiply-add (torch.utils.flop_counter's formulas); what is done element by element counts
none. *Bytes* are each operator's tensors, read once and written once: views move nothing, a broadcast input counts
the elements it has, what an operator changes in place is read and written. So a kernel that reads its input twice
moves more than is said here, and one whose input is still in a cache moves less.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from fusionseg.training import step

Mark = float | torch.cuda.Event


@dataclass(frozen=True)
class Call:
    """One call of an operator."""

    phase: str
    kind: str
    """The operator's name in aten, without the overload."""
    flops: int
    """Two for each multiply-add."""
    bytes: int
    seconds: float

    def bound_s(self, flops_per_s: float, bytes_per_s: float) -> float:
        """The least time that it can take on a device with these rates (Williams et al., "Roofline", 2009)."""
        return max(self.flops / flops_per_s, self.bytes / bytes_per_s)


@dataclass(frozen=True)
class Cost:
    """Of several calls together."""

    calls: int
    flops: int
    bytes: int
    bound_s: float
    """Sum of the calls' bounds: each is limited by itself, and none hides behind another."""
    compute_bound_s: float
    """The part of it that calls have whose operations, not bytes, limit them."""
    seconds: float

    @property
    def intensity(self) -> float:
        """Operations for each byte."""
        return self.flops / self.bytes if self.bytes else 0.0

    @property
    def limited_by(self) -> str:
        """What most of the bound comes from."""
        return "operations" if self.compute_bound_s > self.bound_s / 2 else "bytes"


def add_up(calls: Iterable[Call], flops_per_s: float, bytes_per_s: float) -> Cost:
    """The cost of some calls on a device with these rates."""
    count, flops, moved, bound_s, compute_s, seconds = 0, 0, 0, 0.0, 0.0, 0.0
    for call in calls:
        own = call.bound_s(flops_per_s, bytes_per_s)
        count, flops, moved = count + 1, flops + call.flops, moved + call.bytes
        bound_s, seconds = bound_s + own, seconds + call.seconds
        if call.flops / flops_per_s > call.bytes / bytes_per_s:
            compute_s += own
    return Cost(count, flops, moved, bound_s, compute_s, seconds)


class OperatorWatch(TorchDispatchMode):
    """While it is open, every operator that runs is written down; `calls` waits for the device.

    On a GPU an operator's seconds lie between two events in the stream: they hold the gap in which a host that is not
    ahead of the device launches the kernel.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.phase = ""
        self._seen: list[tuple[tuple[str, str, int, int], Mark, Mark]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        start = mark(self.device)
        result = func(*args, **kwargs)
        end = mark(self.device)
        moved = bytes_moved(func, args, kwargs, result)
        if moved:
            flops = operations(func, args, kwargs, result)
            self._seen.append(((self.phase, func.overloadpacket.__name__, flops, moved), start, end))
        return result

    def calls(self) -> list[Call]:
        """All calls so far, in their order."""
        settle(self.device)
        return [Call(*counted, seconds_between(start, end)) for counted, start, end in self._seen]


def operations(func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> int:
    """Two for each multiply-add of an operator's call; 0 for one that multiplies no matrices."""
    # The CPU's fused attention is not among torch's formulas.
    if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
        return int(sdpa_flop_count(*(tensor.shape for tensor in args[:3])))
    if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default:
        return int(sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4])))
    packet = func.overloadpacket
    # addmm_ and baddbmm_ multiply as addmm and baddbmm do, of which alone torch has formulas.
    plain = getattr(torch.ops.aten, packet.__name__.removesuffix("_"), None)
    formula = flop_registry.get(packet) or flop_registry.get(plain)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=result))


def bytes_moved(func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> int:
    """Bytes that an operator's call reads and writes, each tensor once."""
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
        # What is only overwritten is not read.
        read = not (changed and (argument.is_out or func.overloadpacket.__name__ in ("copy_", "fill_", "zero_")))
        moved += sum(_size(tensor) for tensor in tensors) * (read + changed)
    memory = {tensor.untyped_storage()._cdata for tensor in given}
    made = [leaf for leaf in _pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    new = [tensor for tensor in made if tensor.untyped_storage()._cdata not in memory]
    if made and not new and not schema.is_mutable:
        return 0  # a view of its input
    return moved + sum(_size(tensor) for tensor in new)


def _size(tensor: Tensor) -> int:
    """Bytes of the elements that there are: those along a broadcast axis are one."""
    own = prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or not size)
    return own * tensor.element_size()


def mark(device: torch.device) -> Mark:
    """A point in the device's time."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()  # type: ignore[no-untyped-call]
    return event


def seconds_between(start: Mark, end: Mark) -> float:
    """From one mark to another; on a GPU only after `settle`."""
    if isinstance(start, torch.cuda.Event):
        assert isinstance(end, torch.cuda.Event)
        return float(start.elapsed_time(end)) / 1e3  # type: ignore[no-untyped-call]
    assert not isinstance(end, torch.cuda.Event)
    return end - start


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PhaseClock:
    """Seconds of each phase of a step, on the device; `seconds` waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[tuple[str, Mark, Mark]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = mark(self.device)
        yield
        self._marks.append((name, start, mark(self.device)))

    def seconds(self) -> dict[str, float]:
        """Of each phase, in the order of the step."""
        settle(self.device)
        total: defaultdict[str, float] = defaultdict(float)
        for name, start, end in self._marks:
            total[name] += seconds_between(start, end)
        return dict(total)


@contextmanager
def follow_phases(enter: Callable[[str], AbstractContextManager[None]]) -> Iterator[None]:
    """Call `enter` around each phase of every training step within the body.

    The step names its phases once, by `annotate`: this listens there, so that it is the engine's own step that is
    followed and not a copy of it.
    """
    original = step.annotate

    @contextmanager
    def both(name: str, payload: int = 0) -> Iterator[None]:
        with original(name, payload), enter(name):
            yield

    vars(step)["annotate"] = both
    try:
        yield
    finally:
        vars(step)["annotate"] = original
