"""Casts of weights to 16 bits for a training step, one operator for each group of weights.

Autocast casts each weight by an operator of its own, and its gradient back by another. A network with 200 weights so
launches 400 operators in a step that do little work. Here a group of weights is cast by one operator, and their
gradients are cast back by one. The values are those of autocast.

With DistributedDataParallel a group has about the size of a bucket: its gradients are ready together, and DDP sends
them while the backward pass goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fusionseg.models.device_kind import autocast_kind, device_kind
from fusionseg.models.memory_efficient.layer_norm import LayerNorm
from fusionseg.models.placement import GuardedConv3d

GROUP_BYTES = 25 * 2**20
"""Most bytes of the float32 weights of a group; the size of a bucket of DistributedDataParallel."""
GROUPS_ALONE = 16
"""A group of a process without others is so many times as large: nothing is sent while the backward pass goes on."""

_NAMES = ("weight", "bias")
_CASTS = "_weight_casts"  # key in the dictionary of a module while casts are in its place


class WeightCasts:
    """The weights of a network that autocast would cast, and their copies in 16 bits.

    Args:
        model: the network; its weights are on their device.
        dtype: bfloat16 or float16, that of autocast.
        adds_gradients: add the gradients of a further backward pass by one operator for each group. Not with
            DistributedDataParallel, which waits for the addition of each single gradient.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, *, adds_gradients: bool) -> None:
        self._places: list[_Place] = []
        self._adds_gradients = adds_gradients
        found: dict[int, nn.Parameter] = {}
        for module in dict.fromkeys(_uncompiled(model)):
            if type(module) in _WITH_CASTS:
                weights = {name: module._parameters.get(name) for name in _NAMES}
                kept = {name: weight for name, weight in weights.items() if _is_cast(module, weight)}
                if kept:
                    found.update((id(weight), weight) for weight in kept.values() if weight is not None)
                    places = {name: id(weight) for name, weight in kept.items()}
                    self._places.append(_Place(module, type(module), places))
        most = GROUP_BYTES * (GROUPS_ALONE if adds_gradients else 1)
        self._groups = [_Group(weights, dtype, adds_gradients) for weights in _divide(list(found.values()), most)]
        self._others = [weight for weight in model.parameters() if id(weight) not in found]

    @property
    def nbytes(self) -> int:
        """Bytes of the copies."""
        return sum(copy.nbytes for group in self._groups for copy in group.copies)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Cast all weights, and let their modules give the casts wherever autocast is on, for any number of passes.

        The backward passes belong to the context too: activation checkpointing runs modules again in them.
        """
        casts = {id(weight): each for group in self._groups for weight, each in group.cast()}
        try:
            for module, kind, names in self._places:
                module.__dict__[_CASTS] = {name: casts[key] for name, key in names.items()}
                object.__setattr__(module, "__class__", _WITH_CASTS[kind])
            yield
        finally:
            for module, kind, _ in self._places:
                object.__setattr__(module, "__class__", kind)
                module.__dict__.pop(_CASTS, None)

    @contextmanager
    def adding_gradients(self) -> Iterator[None]:
        """Add the gradients of a backward pass to those of earlier ones, by one operator for the weights without cast.

        Without `adds_gradients` this does nothing, and autograd adds each gradient.
        """
        earlier = [(weight, weight.grad) for weight in self._others if weight.grad is not None and self._adds_gradients]
        for weight, _ in earlier:
            weight.grad = None
        yield
        pairs = [(total, weight.grad) for weight, total in earlier if weight.grad is not None]
        if pairs:
            torch._foreach_add_([total for total, _ in pairs], [added for _, added in pairs])
        for weight, total in earlier:
            weight.grad = total


class _Place(NamedTuple):
    module: nn.Module
    kind: type[nn.Module]
    names: dict[str, int]
    """The id of the weight of each name."""


class _Group:
    """Weights that are cast together."""

    def __init__(self, weights: list[nn.Parameter], dtype: torch.dtype, adds_gradients: bool) -> None:
        self.weights = weights
        self.adds_gradients = adds_gradients
        self.copies = [torch.empty_like(weight, dtype=dtype, requires_grad=False) for weight in weights]

    def cast(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield each weight with its cast. The gradients of the casts become gradients of the weights."""
        return zip(self.weights, _CastFunction.apply(self, *self.weights), strict=True)

    def weight_grads(self, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the gradients of the weights, given those of the casts; None for those that are added here.

        Args:
            grads: one for each weight; None for a weight that the loss does not depend on.
        """
        given = {i: _laid_out(grad, self.copies[i]) for i, grad in enumerate(grads) if grad is not None}
        results: list[Tensor | None] = [None] * len(grads)
        if not given:
            return results
        found = {index: torch.empty_like(self.weights[index], requires_grad=False) for index in given}
        torch._foreach_copy_(list(found.values()), list(given.values()))
        totals: list[Tensor] = []
        added: list[Tensor] = []
        for index, grad in found.items():
            total = self.weights[index].grad
            if total is None or not self.adds_gradients:
                results[index] = grad
            else:
                totals.append(total)
                added.append(grad)
        if totals:
            torch._foreach_add_(totals, added)
        return results


class _CastFunction(torch.autograd.Function):
    """The casts of a group. It saves no tensor, so that several backward passes may follow a forward pass."""

    @staticmethod
    def forward(ctx: Any, group: _Group, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        ctx.set_materialize_grads(False)
        torch._foreach_copy_(group.copies, weights)
        return tuple(copy.detach() for copy in group.copies)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = zip(grads, ctx.needs_input_grad[1:], strict=True)
        return None, *ctx.group.weight_grads([grad if needs else None for grad, needs in needed])


def _laid_out(grad: Tensor, like: Tensor) -> Tensor:
    """Return a gradient in the memory layout of a tensor: an operator on a list is one kernel only if layouts agree."""
    if all(size == 1 or a == b for size, a, b in zip(grad.shape, grad.stride(), like.stride(), strict=True)):
        return grad
    return torch.empty_like(like).copy_(grad)


def _uncompiled(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules outside of compiled ones, in which the compiler joins the casts with other operators."""
    if module._compiled_call_impl is None and "_orig_mod" not in module._modules:
        yield module
        for child in module.children():
            yield from _uncompiled(child)


def _is_cast(module: nn.Module, weight: nn.Parameter | None) -> bool:
    if weight is None or weight.dtype != torch.float32:
        return False
    return not isinstance(module, LayerNorm) or device_kind(weight) != "cpu"  # on a CPU its weights are float32


def _divide(weights: list[nn.Parameter], most: int) -> Iterator[list[nn.Parameter]]:
    """Divide weights into groups of neighbours of at most `most` bytes, the frozen ones apart from those that learn."""
    for learns in (True, False):
        group: list[nn.Parameter] = []
        size = 0
        for weight in weights:
            if weight.requires_grad == learns:
                if group and size + weight.nbytes > most:
                    yield group
                    group, size = [], 0
                group.append(weight)
                size += weight.nbytes
        if group:
            yield group


def _reader(name: str) -> Callable[[nn.Module], Tensor | None]:
    def read(module: nn.Module) -> Tensor | None:
        found: Tensor | None = module.__dict__[_CASTS].get(name)
        if found is not None:
            kind = autocast_kind(found)
            if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == found.dtype:
                return found
        return module._parameters[name]

    return read


def _with_casts(kind: type[nn.Module]) -> type[nn.Module]:
    """Make the class of a module whose weights are casts while autocast is on."""
    properties: dict[str, Any] = {name: property(_reader(name)) for name in _NAMES}
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "__doc__": kind.__doc__, **properties})


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WITH_CASTS: dict[type[nn.Module], type[nn.Module]] = {
    kind: _with_casts(kind) for kind in (*_CONVOLUTIONS, GuardedConv3d, nn.Linear, nn.PReLU, LayerNorm)
}
"""The modules whose weight and bias autocast casts, with their classes while the casts are in place.

Subclasses are left to autocast: they may use their weights in other ways.
"""
