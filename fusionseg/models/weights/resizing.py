"""Weights of other shapes: other input channels, another grid of tokens, a linear patch embedding."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Adapted = dict[str, tuple[Tensor, str]]
"""Name in the network -> the tensor in its shape, and what was done, in words."""


def adapt(model: nn.Module, own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Adapted:
    """Bring tensors of a file into the shapes of a network, where a rule says how; the others are left out.

    The rules:

    - Input channels: a weight that reads the volume gets in every channel the mean over the file's channels, times
      their number, divided by the network's: `new[:, j] = sum_i old[:, i] / n_new`. A network that sees the same
      image in all of its channels then answers as the file's did to that image in all of its own.
    - Linear patch embedding (of older UNETRs, inputs in the order p1, p2, p3, c): the convolution that computes the
      same.
    - Position embedding of tokens (1, n, C): trilinear between the two grids. The network's grid is known, or n is a
      cube; the file's is the network's times a common factor, or a cube, or a cube after a class token, which is
      dropped.

    Args:
        own: the network's tensors.
        found: the file's, by the network's names.
    """
    result: Adapted = {}
    _adapt_channels(model, own, found, result)
    for name, here in own.items():
        if name.endswith("position_embeddings") and name in found and found[name].shape != here.shape:
            grid = getattr(model, "feat_size", None)  # MONAI's UNETR
            resized = _resize_positions(found[name], here, tuple(grid) if grid is not None else None)
            if resized is not None:
                result[name] = resized
    return result


def _adapt_channels(model: nn.Module, own: Mapping[str, Tensor], found: Mapping[str, Tensor], result: Adapted) -> None:
    convolutions = {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd) and module.groups == 1
    }
    # The first convolution of a network reads the volume. Others that do are told by reading as many channels, here
    # and in the file.
    first = next(iter(convolutions), None)
    if first is None or first not in found:
        return
    stem = _unfolded(found[first], own[first].shape)
    if stem.shape != found[first].shape and stem.shape == own[first].shape:
        result[first] = stem, "from a linear layer to a convolution"
    if not _differ_in_channels(stem, own[first]):
        return
    here, there = own[first].shape[1], stem.shape[1]
    for name, module in convolutions.items():
        theirs = stem if name == first else found.get(name)
        if (
            theirs is not None
            and (module.in_channels, theirs.shape[1:2]) == (here, (there,))
            and _differ_in_channels(theirs, own[name])
        ):
            result[name] = to_channels(theirs, here), f"from {there} to {here} channels"


def to_channels(weight: Tensor, channels: int) -> Tensor:
    """A convolution's weight (out, in, ...) for another number of input channels: see `adapt`."""
    mean = weight.float().sum(dim=1, keepdim=True) / channels
    return mean.expand(-1, channels, *weight.shape[2:])


def _differ_in_channels(one: Tensor, other: Tensor) -> bool:
    return one.ndim == other.ndim > 2 and one.shape[1] != other.shape[1] and one[:, 0].shape == other[:, 0].shape


def _unfolded(weight: Tensor, shape: torch.Size) -> Tensor:
    """The weight (out, p1 p2 p3 c) of a linear patch embedding as that of a convolution of `shape`, if it is one."""
    kernel = shape[2:]
    if weight.ndim != 2 or len(shape) < 3 or weight.shape[0] != shape[0] or weight.shape[1] % prod(kernel):
        return weight
    return weight.reshape(shape[0], *kernel, -1).movedim(-1, 1)


def _resize_positions(theirs: Tensor, here: Tensor, grid: tuple[int, ...] | None) -> tuple[Tensor, str] | None:
    if theirs.ndim != 3 or theirs.shape[0] != 1 or theirs.shape[2] != here.shape[2]:
        return None
    count = here.shape[1]
    if grid is None or prod(grid) != count:
        grid = _cube(count)
    if grid is None:
        return None
    how = ""
    old = _file_grid(theirs.shape[1], grid)
    if old is None and (old := _cube(theirs.shape[1] - 1)) is not None:
        theirs, how = theirs[:, 1:], ", without the class token"
    if old is None:
        return None
    volume = theirs.float().reshape(1, *old, -1).movedim(-1, 1)
    resized = volume if old == grid else nn.functional.interpolate(volume, size=grid, mode="trilinear")
    return resized.flatten(2).transpose(1, 2), f"from {_times(old)} to {_times(grid)} tokens{how}"


def _file_grid(count: int, grid: tuple[int, ...]) -> tuple[int, ...] | None:
    """The grid of `count` tokens: in the proportions of `grid`, or a cube."""
    factor = (count / prod(grid)) ** (1 / len(grid))
    scaled = tuple(round(size * factor) for size in grid)
    in_proportion = all(a * grid[0] == b * scaled[0] for a, b in zip(scaled, grid, strict=True))
    return scaled if prod(scaled) == count and in_proportion else _cube(count)


def _cube(count: int) -> tuple[int, ...] | None:
    edge = round(max(count, 0) ** (1 / 3))
    return (edge,) * 3 if edge > 0 and edge**3 == count else None


def _times(grid: tuple[int, ...]) -> str:
    return "x".join(map(str, grid))
