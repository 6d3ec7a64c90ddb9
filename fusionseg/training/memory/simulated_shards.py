"""The memory of divided weights in a step without data: what `fully_shard` (FSDP2) gathers, and parts of gradients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle


def part_bytes(weights: Iterable[Tensor], ranks: int) -> int:
    """Bytes of the parts of weights on one rank. A part is padded to that of rank 0, which has the most rows."""
    return sum(-(-prod(weight.shape[:1]) // ranks) * prod(weight.shape[1:]) * weight.itemsize for weight in weights)


class SimulatedShards:
    """Allocates in a step what `fully_shard` would (torch 2.13), and drops the gradients of whole weights as it does.

    The weights themselves stay as they are. In the forward pass a unit has its whole weights, and the buffer of its
    all-gather until that of the next unit is done. In the backward pass the buffer of the unit before is there as
    well. When all gradients of a unit are complete, they are copied into the buffer of the reduce-scatter, which stays
    until the next unit is complete, and a part of them remains. The whole weights of the network's own unit stay from
    the forward pass to the backward pass; `root_bytes` has them, and the step does not.

    Hooks are added to the network and its weights; `remove` takes those of the network away.

    Args:
        model: the network, whole.
        units: names of modules, from `find_units`.
        ranks: number of ranks.
        bf16_gradients: gradients are sent in bfloat16.
    """

    def __init__(self, model: nn.Module, units: Iterable[str], ranks: int, *, bf16_gradients: bool) -> None:
        self._device = next(model.parameters()).device
        self._ranks = ranks
        self._sent_share = 0.5 if bf16_gradients else 1.0
        self._order: list[_Unit] = []
        self._last_gather: Tensor | None = None
        self._last_reduce: Tensor | None = None
        self._hooks: list[RemovableHandle] = []
        taken: set[nn.Parameter] = set()
        for name in (*sorted(units, key=lambda each: each.count("."), reverse=True), ""):  # as `shard_network_` does
            module = model.get_submodule(name)
            weights = [weight for weight in module.parameters() if weight not in taken]
            taken.update(weights)
            learning = [weight for weight in weights if weight.requires_grad]
            unit = _Unit(part_bytes(weights, ranks), learning, part_bytes(learning, ranks), is_root=name == "")
            self._hooks.append(module.register_forward_pre_hook(partial(self._before_forward, unit)))
            self._hooks.append(module.register_forward_hook(partial(self._after_forward, unit)))
            for weight in learning:
                weight.register_post_accumulate_grad_hook(partial(self._has_gradient, unit))
        self.root_bytes = ranks * unit.part_bytes
        """Bytes of the whole weights of the network's own unit."""

    def remove(self) -> None:
        """Remove the hooks of the network: further forward passes are those of a network that is whole."""
        for hook in self._hooks:
            hook.remove()

    def _before_forward(self, unit: _Unit, *_: Any) -> None:
        if unit.is_root:
            self._order = []
        if unit.whole is None:
            self._gather(unit)
            self._last_gather = None if _is_backward() else unit.gathered
            self._take(unit)

    def _after_forward(self, unit: _Unit, module: nn.Module, args: Any, output: Any) -> None:
        if _is_backward():  # activations are computed again
            return
        if unit.is_root:
            self._last_gather = None
        else:
            unit.whole = None
        unit.index = len(self._order)
        self._order.append(unit)
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                leaf.register_hook(partial(self._before_backward, unit))

    def _before_backward(self, unit: _Unit, *_: Any) -> None:
        if unit.index is None:  # another output of the unit was first
            return
        index, unit.index = unit.index, None
        if unit.is_root:
            torch.autograd.Variable._execution_engine.queue_callback(self._end_backward)  # type: ignore[attr-defined]
        if unit.whole is None:
            self._gather(unit)
            self._take(unit)
        if index and self._order[index - 1].whole is None:
            self._gather(self._order[index - 1])

    def _has_gradient(self, unit: _Unit, *_: Any) -> None:
        unit.complete += 1
        if unit.complete < len(unit.learning):
            return
        unit.complete = 0
        unit.whole = self._last_reduce = None
        sent = round(self._sent_share * self._ranks * unit.learning_bytes)
        self._last_reduce = self._bytes(sent)
        for weight in unit.learning:
            weight.grad = None
        received = self._bytes(sent // self._ranks)
        part = self._bytes(unit.learning_bytes) if self._sent_share < 1 else received
        if unit.gradient is None:  # those of later micro-batches are added to that of the first
            unit.gradient = part

    def _end_backward(self) -> None:
        self._last_reduce = None

    def _gather(self, unit: _Unit) -> None:
        if unit.gathered is None:
            unit.gathered = self._bytes(self._ranks * unit.part_bytes)

    def _take(self, unit: _Unit) -> None:
        """Copy the gathered weights to their places, and free the buffer."""
        unit.whole = self._bytes(0 if unit.is_root else self._ranks * unit.part_bytes)
        unit.gathered = None

    def _bytes(self, count: int) -> Tensor:
        return torch.empty(count, dtype=torch.uint8, device=self._device)


@dataclass(eq=False)
class _Unit:
    """A unit of the division, and the tensors that it has at the time."""

    part_bytes: int
    """Bytes of the part of its weights on a rank."""
    learning: list[nn.Parameter]
    """Its weights that learn."""
    learning_bytes: int
    """Bytes of the part of those on a rank."""
    is_root: bool = field(kw_only=True)
    complete: int = 0
    """Weights that have their gradient in this backward pass."""
    index: int | None = None
    """Position in the order of the forward pass; None when its backward pass has begun."""
    gathered: Tensor | None = None
    whole: Tensor | None = None
    gradient: Tensor | None = None


def _is_backward() -> bool:
    return torch._C._current_graph_task_id() != -1
