"""Resizing of weights: other numbers of input channels, other grids of tokens, linear patch embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Resized = dict[str, tuple[Tensor, str]]
"""Name in the network -> the resized tensor, and the change in words."""


def resize_tensors(model: nn.Module, own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Resized:
    """Resize tensors of a file to the shapes of a network. Tensors without a rule are not in the result.

    The rules are:

    - Input channels: every input channel of a convolution that reads the volume becomes
      `new[:, j] = sum_i old[:, i] / n_new`. The output for one image in all channels is then that of the old network
      for the same image in all of its channels.
    - Linear patch embedding of older UNETRs (inputs in the order p1, p2, p3, c): it becomes the convolution with the
      same output.
    - Position embedding of tokens (1, n, C): trilinear interpolation between the two grids. The grid of the network is
      known, or n is a cube. The grid of the file has the proportions of the network's, or is a cube, or is a cube after
      a class token, which is removed.

    Args:
        model: the network.
        own: the network's tensors by name.
        found: the file's tensors, by the names of the network.
    """
    result: Resized = {}
    _resize_channels(model, own, found, result)
    for name, here in own.items():
        if name.endswith("position_embeddings") and name in found and found[name].shape != here.shape:
            grid = getattr(model, "feat_size", None)  # MONAI's UNETR
            resized = _resize_positions(found[name], here, tuple(grid) if grid is not None else None)
            if resized is not None:
                result[name] = resized
    return result


def _resize_channels(model: nn.Module, own: Mapping[str, Tensor], found: Mapping[str, Tensor], result: Resized) -> None:
    convolutions = {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd) and module.groups == 1
    }
    # The first convolution of a network reads the volume. Others that read it have the same number of input channels,
    # in the network and in the file.
    first = next(iter(convolutions), None)
    if first is None or first not in found:
        return
    stem = _as_convolution(found[first], own[first].shape)
    if stem.shape != found[first].shape and stem.shape == own[first].shape:
        result[first] = stem, "from a linear layer to a convolution"
    if not _differ_in_channels(stem, own[first]):
        return
    here, there = own[first].shape[1], stem.shape[1]
    for name, module in convolutions.items():
        tensor = stem if name == first else found.get(name)
        if (
            tensor is not None
            and (module.in_channels, tensor.shape[1:2]) == (here, (there,))
            and _differ_in_channels(tensor, own[name])
        ):
            result[name] = resize_input_channels(tensor, here), f"from {there} to {here} channels"


def resize_input_channels(weight: Tensor, channels: int) -> Tensor:
    """Resize the weight of a convolution to another number of input channels, see `resize_tensors`.

    Args:
        weight: (out, in, ...).
        channels: new number of input channels.
    """
    mean = weight.float().sum(dim=1, keepdim=True) / channels
    return mean.expand(-1, channels, *weight.shape[2:])


def _differ_in_channels(one: Tensor, other: Tensor) -> bool:
    return one.ndim == other.ndim > 2 and one.shape[1] != other.shape[1] and one[:, 0].shape == other[:, 0].shape


def _as_convolution(weight: Tensor, shape: torch.Size) -> Tensor:
    """Reshape the weight (out, p1 p2 p3 c) of a linear patch embedding to that of a convolution.

    A weight that cannot be a linear patch embedding is returned unchanged.

    Args:
        weight: the weight in the file.
        shape: (out, in, p1, p2, p3), the weight of the network's convolution.
    """
    kernel = shape[2:]
    if weight.ndim != 2 or len(shape) < 3 or weight.shape[0] != shape[0] or weight.shape[1] % prod(kernel):
        return weight
    return weight.reshape(shape[0], *kernel, -1).movedim(-1, 1)


def _resize_positions(tensor: Tensor, here: Tensor, grid: tuple[int, ...] | None) -> tuple[Tensor, str] | None:
    if tensor.ndim != 3 or tensor.shape[0] != 1 or tensor.shape[2] != here.shape[2]:
        return None
    count = here.shape[1]
    if grid is None or prod(grid) != count:
        grid = _cube(count)
    if grid is None:
        return None
    note = ""
    old = _file_grid(tensor.shape[1], grid)
    if old is None and (old := _cube(tensor.shape[1] - 1)) is not None:
        tensor, note = tensor[:, 1:], ", without the class token"
    if old is None:
        return None
    volume = tensor.float().reshape(1, *old, -1).movedim(-1, 1)
    resized = volume if old == grid else nn.functional.interpolate(volume, size=grid, mode="trilinear")
    return resized.flatten(2).transpose(1, 2), f"from {_times(old)} to {_times(grid)} tokens{note}"


def _file_grid(count: int, grid: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the grid of `count` tokens: in the proportions of `grid`, or a cube; None if there is none."""
    factor = (count / prod(grid)) ** (1 / len(grid))
    scaled = tuple(round(size * factor) for size in grid)
    in_proportion = all(a * grid[0] == b * scaled[0] for a, b in zip(scaled, grid, strict=True))
    return scaled if prod(scaled) == count and in_proportion else _cube(count)


def _cube(count: int) -> tuple[int, ...] | None:
    edge = round(max(count, 0) ** (1 / 3))
    return (edge,) * 3 if edge > 0 and edge**3 == count else None


def _times(grid: tuple[int, ...]) -> str:
    return "x".join(map(str, grid))
