"""Indices and masks of attention windows, computed once for each size of a stage and cached.

Source: Z. Liu et al., "Swin Transformer" (2021, section 3.2, arXiv:2103.14030): windows, cyclic shift with masks, and
relative position bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

Size3 = tuple[int, int, int]

_MASKED = -100.0  # added to the scores of tokens that are not adjacent in the volume, as in the authors' code


@dataclass(frozen=True, eq=False)
class WindowLayout:
    """Assignment of the L tokens of a stage to windows of n slots, and back.

    Padding, cyclic shift and partition together are one permutation of rows, so that one `index_select` does all of
    them and another one inverts them. Windows with the same mask are adjacent and form a group. Only windows at the
    border of the shifted volume need a mask; there are at most eight groups, for any number of windows.
    """

    tokens: int
    """L, tokens of the stage."""
    length: int
    """n, tokens of a window."""
    window: Size3
    """Tokens of a window along each axis."""
    index: Tensor
    """(windows * n): token of each slot; the value L is padding."""
    slot: Tensor
    """(L): slot of each token."""
    padded: Tensor
    """Slots of the padding."""
    groups: tuple[tuple[int, int, Tensor | None], ...]
    """Groups of windows: first window, end, and the mask (n, n) that is added to the scores, or None."""

    @property
    def windows(self) -> int:
        return self.groups[-1][1]


def fitted_window(dims: Size3, window: int, *, shifted: bool) -> tuple[Size3, Size3]:
    """Return the window and the shift for a stage: an axis that fits into one window is not shifted.

    Args:
        dims: tokens of the stage along each axis.
        window: tokens of a window along each axis.
        shifted: shift the windows by half their size.
    """
    sizes = [min(window, dim) for dim in dims]
    shifts = [window // 2 if shifted and dim > window else 0 for dim in dims]
    return (sizes[0], sizes[1], sizes[2]), (shifts[0], shifts[1], shifts[2])


# The result depends only on the arguments, so that torch.compile may treat it as a constant of the graph.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def window_layout(dims: Size3, window: int, shifted: bool, device: torch.device) -> WindowLayout:
    """Return the layout for a stage, from the cache if it is known.

    Args:
        dims: tokens of the stage along each axis.
        window: tokens of a window along each axis.
        shifted: shift the windows by half their size.
        device: device of the layout's tensors.
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

    # After the cyclic shift, an axis consists of up to three runs that are not adjacent in the volume.
    regions = np.zeros(padded_dims, dtype=np.int64)
    for axis, (dim, n, s) in enumerate(zip(padded_dims, size, shift, strict=True)):
        if s:
            runs = np.zeros(dim, dtype=np.int64)
            runs[dim - n : dim - s] = 1
            runs[dim - s :] = 2
            regions += 3**axis * runs.reshape([-1 if a == axis else 1 for a in range(3)])
    windows = _partition(regions, size)
    masked = windows[:, :, None] != windows[:, None, :] if any(shift) else np.zeros((len(index), 1, 1), dtype=bool)

    members_by_mask: dict[bytes, list[int]] = {}
    for window_index in range(len(index)):
        key = windows[window_index].tobytes() if masked[window_index].any() else b""
        members_by_mask.setdefault(key, []).append(window_index)
    order = [window_index for members in members_by_mask.values() for window_index in members]
    groups: list[tuple[int, int, Tensor | None]] = []
    first = 0
    for key, members in members_by_mask.items():
        mask = np.where(masked[members[0]], np.float32(_MASKED), np.float32(0)) if key else None
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
    """Split a volume whose axes are multiples of the window into windows, (windows, n)."""
    x, y, z = (dim // n for dim, n in zip(grid.shape, size, strict=True))
    blocks = grid.reshape(x, size[0], y, size[1], z, size[2]).transpose(0, 2, 4, 1, 3, 5)
    return blocks.reshape(x * y * z, -1)


def relative_position_index(window: int) -> Tensor:
    """Return for each pair of tokens of a window the row of the bias table, (n, n) with n = window**3.

    Args:
        window: tokens of a window along each axis.
    """
    axes = np.meshgrid(*[np.arange(window)] * 3, indexing="ij")
    positions = np.stack([axis.reshape(-1) for axis in axes])
    offsets = positions[:, :, None] - positions[:, None, :] + window - 1
    num_offsets = 2 * window - 1  # along one axis
    index = (offsets[0] * num_offsets + offsets[1]) * num_offsets + offsets[2]
    return torch.from_numpy(index).to(torch.get_default_device())
