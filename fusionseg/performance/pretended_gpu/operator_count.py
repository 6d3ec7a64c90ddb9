"""Counting of device operators, by phase of the training step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_NO_KERNEL = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "is_pinned", "_reshape_alias",
    "_unsafe_view", "alias", "lift_fresh", "set_", "record_stream", "resolve_conj",
}  # fmt: skip


@dataclass
class Operators:
    """The operators of one step."""

    launched: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Operators that launch kernels on the device, by phase and name. Views and allocations are left out."""
    transfers: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Those of them that have tensors on the host too: copies between host and device."""
    sequence: list[tuple[str, str]] = field(default_factory=list)
    """Phase and name in the order of the launches."""

    def phases(self) -> dict[str, int]:
        """Count the operators of each phase."""
        total: Counter[str] = Counter()
        for (phase, _), count in self.launched.items():
            total[phase] += count
        return dict(total)


class OperatorCount(TorchDispatchMode):
    """Counts the operators on CUDA tensors that are called within it."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = ""
        """The phase that the operators are counted for."""
        self.operators = Operators()

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)}
        if "cuda" in devices and launches(func):
            key = (self.phase, str(func).removeprefix("aten."))
            self.operators.launched[key] += 1
            self.operators.sequence.append(key)
            if len(devices) > 1:
                self.operators.transfers[key] += 1
        return out


def launches(func: OpOverload) -> bool:
    """Tell whether an operator launches kernels: it is no view, allocation, or question about a tensor."""
    if func.namespace == "prim" or func._schema.name.split("::")[1] in _NO_KERNEL:
        return False
    returned = [value.alias_info for value in func._schema.returns]
    return not any(alias is not None and not alias.is_write for alias in returned)
