"""A CUDA graph on the CPU: the operators of a function are recorded, and run again at the same places in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import Work
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HOST_READS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "item"}


class RecordedOperators:
    """Records operators as `CudaRecorder` does, with what a graph promises and what it forbids.

    Replaying calls the operators alone, and no code of the training. Each reads and writes the tensors that it had when
    it was recorded. Recording changes nothing: what it has written is as before when it ends. Reading a value is an
    error. Collective operations are recorded too: all ranks record and replay together, as with NCCL.
    """

    def __init__(self) -> None:
        self.recorded: list[list[str]] = []
        """The names of the operators of each recording."""
        self.replays = 0
        self.resets = 0

    @property
    def recordings(self) -> int:
        return len(self.recorded)

    @contextmanager
    def stream(self) -> Iterator[None]:
        yield

    def reset(self) -> None:
        self.resets += 1

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        calls = _Calls()
        random_state = torch.get_rng_state()
        with calls:
            work()
        self.recorded.append([func._schema.name for func, *_ in calls.made])
        torch.set_rng_state(random_state)
        with torch.no_grad():
            for tensor, value in calls.before:
                tensor.copy_(value)

        def replay() -> None:
            self.replays += 1
            with torch.no_grad():
                for func, args, kwargs, out in calls.made:
                    _run_again(func, args, kwargs, out)

        return replay


class _Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[OpOverload, tuple[Any, ...], dict[str, Any], Any]] = []
        self.before: list[tuple[Tensor, Tensor]] = []
        """Tensors from outside that were written, and their values before."""
        self._known: set[int] = set()
        self._kept: list[Any] = []  # no memory is used twice, so that its address stands for it

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func._schema.name.split("::")[1] in HOST_READS:
            if _is_on_host(args[0]):
                return func(*args, **kwargs)
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        for argument, value in zip(func._schema.arguments, args, strict=False):
            self._save(argument, value)
        for argument in func._schema.arguments:
            if argument.name in kwargs:
                self._save(argument, kwargs[argument.name])
        out = func(*args, **kwargs)
        self._kept.append((args, kwargs, out))
        self._known |= {_address(leaf) for leaf in tree_leaves(out) if isinstance(leaf, Tensor)}
        self.made.append((func, args, kwargs, out))
        return out

    def _save(self, argument: Any, value: Any) -> None:
        if argument.alias_info is None or not argument.alias_info.is_write:
            return
        for leaf in tree_leaves(value):
            if isinstance(leaf, Tensor) and _address(leaf) not in self._known:
                self._known.add(_address(leaf))
                whole = torch.empty(0, dtype=leaf.dtype).set_(leaf.untyped_storage())
                self.before.append((whole, whole.clone()))


def _is_on_host(tensor: Tensor) -> bool:
    """Tell whether a tensor would be on the host beside a GPU: DDP reads there which weights it has used, as int32."""
    return tensor.dtype == torch.int32


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _run_again(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    aliases = [value.alias_info for value in func._schema.returns]
    if any(alias is not None and not alias.is_write for alias in aliases):
        return  # a view of memory that is the same
    made = func(*args, **kwargs)
    if func.namespace == "c10d":  # it runs in the background, and its results are in the memory of its arguments
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.ScriptObject):
                Work.unbox(leaf).wait()
        return
    for new, old, *_ in zip(tree_leaves(made), tree_leaves(out), strict=True):
        if isinstance(old, Tensor) and new is not old and _address(new) != _address(old):
            old.copy_(new)
