"""The parts of a network whose weights can be gathered and freed on their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LARGEST_SHARE = 1 / 8
"""Units are at most this share of the network's weights, where they have smaller parts that can be units."""
SMALLEST_SHARE = 1 / 64
"""Smaller units are left to the module around them: each unit costs two collective operations in a step."""


class UnitTrace(TorchDispatchMode):
    """Watches a forward pass of a network, and tells which of its modules can be units.

    A module can be a unit if it is called once, as a module; its weights are used within the call alone; it changes
    none of its inputs in place; and it gives tensors, which nothing changes in place afterwards. Many blocks read the
    weights of their parts without calling the parts: such a block can be a unit, its parts cannot.

    Enter the trace, call the network once, and then `end`. The weights stay in the same memory until then.

    Args:
        model: the network, on any device. Hooks are added to it, and removed by `end`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._active: list[nn.Module] = []
        self._versions: list[list[tuple[Tensor, int]]] = []
        self._outputs: list[tuple[nn.Module, Tensor, int]] = []
        self._calls: Counter[nn.Module] = Counter()
        self._unfit: set[nn.Module] = set()
        self._hooks: list[Any] = []
        self._weights: dict[nn.Module, dict[int, int]] = {}
        self._owners: dict[int, list[nn.Module]] = {}
        """The modules that have a weight, or a part that has it, by the storage of the weight."""

    def __enter__(self) -> UnitTrace:
        for module in self._model.modules():
            self._weights[module] = _storages(module)
            for storage in self._weights[module]:
                self._owners.setdefault(storage, []).append(module)
            self._hooks.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(self._leave, with_kwargs=True))
        super().__enter__()
        return self

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                for owner in self._owners.get(_storage(leaf), ()):
                    if owner not in self._active:
                        self._unfit.add(owner)
        return func(*args, **(kwargs or {}))

    def end(self) -> None:
        """Stop watching: what follows, such as the backward pass, is not looked at."""
        for hook in self._hooks:
            hook.remove()
        self._owners.clear()
        self._unfit.update(module for module, output, version in self._outputs if output._version != version)
        self._outputs.clear()

    def units(self) -> list[str]:
        """Choose the units of a network, by their names.

        The whole network is not in the list. A unit may contain others; then its own weights are those outside of them.
        """
        total = sum(self._weights[self._model].values())
        found: list[nn.Module] = []
        for child in self._model.children():
            self._choose(child, total, found)
        names = {module: name for name, module in self._model.named_modules()}
        return [names[module] for module in found]

    def _choose(self, module: nn.Module, total: int, found: list[nn.Module]) -> set[int]:
        """Add the units of a module and its parts; return the storages of their weights."""
        weights = self._weights[module]
        fits = self._calls[module] == 1 and module not in self._unfit
        taken: set[int] = set()
        if not fits or sum(weights.values()) > LARGEST_SHARE * total:
            for child in module.children():
                taken |= self._choose(child, total, found)
        left = sum(size for storage, size in weights.items() if storage not in taken)
        if fits and left >= SMALLEST_SHARE * total:
            found.append(module)
            taken |= weights.keys()
        return taken

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._active.append(module)
        self._calls[module] += 1
        self._versions.append([(tensor, tensor._version) for tensor in _tensors((args, kwargs))])

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._active.pop()
        changed = any(tensor._version != version for tensor, version in self._versions.pop())
        outputs = [tensor for tensor in _tensors(output) if tensor.requires_grad]
        if changed or not outputs:
            self._unfit.add(module)
        self._outputs += [(module, tensor, tensor._version) for tensor in outputs]


def _tensors(value: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def _storages(module: nn.Module) -> dict[int, int]:
    """The bytes of each weight of a module and its parts, by storage."""
    return {_storage(weight): weight.nbytes for weight in module.parameters()}


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
