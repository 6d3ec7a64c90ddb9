"""Tensors that are divided among the ranks along their first axis (`DTensor`), and their whole values.

Nothing here imports `torch.distributed.tensor`, which takes time: a run without divided tensors needs none of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Tell whether a tensor is divided among the ranks."""
    return hasattr(tensor, "full_tensor")


def local_part(tensor: Tensor) -> Tensor:
    """Return the part of a tensor on this rank, in the same memory; a tensor that is not divided, as it is."""
    part: Tensor = tensor.detach().to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return part


def whole(tensor: Tensor) -> Tensor:
    """Return the whole values of a tensor. For a divided one all ranks call it, in the same order of tensors."""
    if not is_sharded(tensor):
        return tensor
    full: Tensor = tensor.detach().full_tensor()  # type: ignore[attr-defined]
    return full


def gather_all(state: Any) -> None:
    """Take part in `whole` of each tensor of a state on another rank, in the order of the state; keep none of them.

    Args:
        state: nested dictionaries, lists and tuples.
    """
    if isinstance(state, Tensor):
        whole(state)
    elif isinstance(state, dict | list | tuple):
        for value in state.values() if isinstance(state, dict) else state:
            gather_all(value)


@torch.no_grad()
def copy_(target: Tensor, values: Tensor) -> None:
    """Copy whole values into a tensor; into a divided one, the part of this rank. No rank waits for another.

    Args:
        target: it is overwritten.
        values: of the same shape, on any device.
    """
    local_part(target).copy_(part_of(values, target))


def divided(part: Tensor, like: Tensor) -> Tensor:
    """Make a divided tensor of the parts of the ranks, in their memory. No rank waits for another.

    Args:
        part: that of this rank.
        like: a divided tensor of the same shape.
    """
    from torch.distributed.tensor import DTensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def part_of(values: Tensor, like: Tensor) -> Tensor:
    """Return the part of whole values that this rank has of a tensor; all of them if the tensor is not divided.

    Args:
        values: the same on each rank.
        like: a tensor of the same shape.
    """
    if not is_sharded(like):
        return values
    mesh = like.device_mesh  # type: ignore[attr-defined]
    rows = rows_of_parts(like)
    first: int = mesh.get_local_rank() * rows
    return values[first : first + rows]


def rows_of_parts(tensor: Tensor) -> int:
    """Return the number of rows that each rank has of a divided tensor; the last ranks may have fewer, or none.

    Args:
        tensor: divided, with at least one axis.
    """
    ranks: int = tensor.device_mesh.size()  # type: ignore[attr-defined]
    return max(1, -(-tensor.shape[0] // ranks))  # as `torch.chunk` divides


def load_state(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy a whole state dict into that of a divided network.

    Args:
        own: `state_dict()` of the network.
        state: of the same network, with whole tensors.

    Raises:
        RuntimeError: names or shapes differ; nothing was copied.
    """
    if differing := own.keys() ^ state.keys():
        raise RuntimeError(f"tensors in one of the two only: {', '.join(sorted(differing)[:4])}")
    if wrong := [name for name, tensor in own.items() if tensor.shape != state[name].shape]:
        raise RuntimeError(f"size mismatch for {', '.join(wrong[:4])}")
    for name, tensor in own.items():
        copy_(tensor, state[name])
