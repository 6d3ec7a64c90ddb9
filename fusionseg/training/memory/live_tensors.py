"""Count of the bytes of the tensors that are alive at the same time."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Count the bytes of all tensors that operations make while the mode is active, in the backward pass too.

    A storage counts once, whatever the number of its views, until its last tensor is deleted. Tensors that are older
    than the mode do not count.

    Args:
        workspace: computes the bytes that an operation takes for itself, from the operation, its arguments and its
            result.
    """

    def __init__(self, workspace: Callable[[Any, Sequence[Any], Any], int] = lambda func, args, result: 0) -> None:
        super().__init__()
        self.live = 0
        """Bytes that are alive now."""
        self.peak = 0
        """Highest number of bytes so far, those of the operations for themselves included."""
        self._workspace = workspace
        self._bytes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = _storages((args, kwargs))  # a view of an older tensor is no new memory
        for key, storage in _storages(result).items():
            if key not in given:
                self._add(key, storage)
        self.peak = max(self.peak, self.live + self._workspace(func, args, result))
        return result

    def _add(self, key: int, storage: UntypedStorage) -> None:
        if key not in self._bytes:
            self._bytes[key] = storage.nbytes()
            self.live += self._bytes[key]
            weakref.finalize(storage, self._remove, key).atexit = False

    def _remove(self, key: int) -> None:
        self.live -= self._bytes.pop(key)


def _storages(values: Any) -> dict[int, UntypedStorage]:
    """The storages of all tensors among some values, by their address."""
    storages = [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor)]
    return {storage._cdata: storage for storage in storages}
