"""Where the tokens of a stage go in the windows of its attention: indices and masks, computed once and kept.

Source: Z. Liu et al., "Swin Transformer" (2021, arXiv:2103.14030), section 3.2: windows, the cyclic shift with its
masks, and the relative position bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

Size3 = tuple[int, int, int]

_MASKED = -100.0  # what the original adds to the scores of tokens that are no neighbours


@dataclass(frozen=True)
class WindowLayout:
    """The way of L tokens, in the order of the volume, into windows of n and back.

    Padding, cyclic shift and partition are one permutation of rows: a single copy does them all, and another one
    undoes them. The windows stand in groups of one mask each; only the windows at the seams of the shift need any,
    and there are no more than eight masks, however many windows.
    """

    tokens: int
    """L."""
    length: int
    """n, tokens of a window."""
    window: Size3
    index: Tensor
    """(windows * n): the token of each slot; L stands for padding."""
    slot: Tensor
    """(L): the slot of each token."""
    padded: Tensor
    """The slots that hold padding."""
    groups: tuple[tuple[int, int, Tensor | None], ...]
    """(first window, one past the last, mask (n, n) or None): what is added to the scores of these windows."""

    @property
    def windows(self) -> int:
        return self.groups[-1][1]


def fitted_window(dims: Size3, window: int, *, shifted: bool) -> tuple[Size3, Size3]:
    """The window and its shift for a stage of this size: an axis that fits into one window is not shifted."""
    sizes = [min(window, dim) for dim in dims]
    shifts = [window // 2 if shifted and dim > window else 0 for dim in dims]
    return (sizes[0], sizes[1], sizes[2]), (shifts[0], shifts[1], shifts[2])


# The result depends on nothing but the arguments, so torch.compile may keep it as a constant of the graph.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def window_layout(dims: Size3, window: int, shifted: bool, device: torch.device) -> WindowLayout:
    """The layout for a stage of this size.

    Args:
        dims: tokens of the stage in each axis.
        window: tokens of a window in each axis.
        shifted: whether the windows are shifted by half their size.
        device: where the tensors of the layout lie.
    """
    return _window_layout(dims, window, shifted, device)


@cache
def _window_layout(dims: Size3, window: int, shifted: bool, device: torch.device) -> WindowLayout:
    size, shift = fitted_window(dims, window, shifted=shifted)
    padded_dims = [-(-dim // n) * n for dim, n in zip(dims, size, strict=True)]
    tokens = int(np.prod(dims))
    length = int(np.prod(size))

    grid = np.full(padded_dims, tokens, dtype=np.int64)
    grid[: dims[0], : dims[1], : dims[2]] = np.arange(tokens).reshape(dims)
    index = _partition(np.roll(grid, [-s for s in shift], axis=(0, 1, 2)), size)

    # After the shift, an axis consists of up to three runs that were no neighbours before.
    regions = np.zeros(padded_dims, dtype=np.int64)
    for axis, (dim, n, s) in enumerate(zip(padded_dims, size, shift, strict=True)):
        if s:
            runs = np.zeros(dim, dtype=np.int64)
            runs[dim - n : dim - s] = 1
            runs[dim - s :] = 2
            regions += 3**axis * runs.reshape([-1 if a == axis else 1 for a in range(3)])
    windows = _partition(regions, size)
    apart = windows[:, :, None] != windows[:, None, :] if any(shift) else np.zeros((len(index), 1, 1), dtype=bool)

    kinds: dict[bytes, list[int]] = {}
    for number in range(len(index)):
        key = windows[number].tobytes() if apart[number].any() else b""
        kinds.setdefault(key, []).append(number)
    order = [number for members in kinds.values() for number in members]
    groups: list[tuple[int, int, Tensor | None]] = []
    first = 0
    for key, members in kinds.items():
        mask = np.where(apart[members[0]], np.float32(_MASKED), np.float32(0)) if key else None
        groups.append((first, first + len(members), None if mask is None else torch.from_numpy(mask).to(device)))
        first += len(members)

    flat = index[order].reshape(-1)
    slots = np.flatnonzero(flat < tokens)
    slot = np.empty(tokens, dtype=np.int64)
    slot[flat[slots]] = slots
    return WindowLayout(
        tokens=tokens,
        length=length,
        window=size,
        index=torch.from_numpy(flat).to(device),
        slot=torch.from_numpy(slot).to(device),
        padded=torch.from_numpy(np.flatnonzero(flat == tokens)).to(device),
        groups=tuple(groups),
    )


def _partition(grid: np.ndarray, size: Size3) -> np.ndarray:
    """(windows, n) of a volume whose axes are multiples of the window."""
    x, y, z = (dim // n for dim, n in zip(grid.shape, size, strict=True))
    blocks = grid.reshape(x, size[0], y, size[1], z, size[2]).transpose(0, 2, 4, 1, 3, 5)
    return blocks.reshape(x * y * z, -1)


def relative_position_index(window: int) -> Tensor:
    """(n, n) numbers of the entry of the bias table for each pair of tokens of a window, n = window**3."""
    axes = np.meshgrid(*[np.arange(window)] * 3, indexing="ij")
    places = np.stack([axis.reshape(-1) for axis in axes])
    offsets = places[:, :, None] - places[:, None, :] + window - 1
    span = 2 * window - 1
    index = (offsets[0] * span + offsets[1]) * span + offsets[2]
    return torch.from_numpy(index).to(torch.get_default_device())
