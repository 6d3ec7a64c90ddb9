"""Instance norm and leaky ReLU of whole maps: few operators, for devices on which each one costs time for its launch.

The formulas are those of `instance_norm`, which computes a few rows at a time. Here one operator of torch's batch norm
normalises all samples: a map of B samples with C channels is one sample with B * C channels, if the samples of a voxel
are neighbours in memory. These matrices (voxels, B * C) are called interleaved. With one sample they are views.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from fusionseg.models.memory_efficient.autograd_helpers import sum_dtype
from fusionseg.models.memory_efficient.instance_norm import EPS, SLOPE, as_rows, refuse_single_voxel, rows_to_map

_SMALL_BYTES = 2**22  # a map of a sample that is copied in less time than the launch of an operator takes


def normalise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Normalise each channel of each sample of a map (B, C, X, Y, Z), whose memory may be overwritten.

    Returns:
        rows (B, voxels, C), of any strides, and the inverse of the deviations, (B * C), at least float32.

    Raises:
        ValueError: the map has a single voxel, whose variance is 0.
    """
    rows = as_rows(x)
    refuse_single_voxel(rows)
    batch, _, channels = rows.shape
    if _is_traced():
        values = rows.to(sum_dtype(rows))
        variance, mean = torch.var_mean(values, 1, correction=0, keepdim=True)
        scale = (variance + EPS).rsqrt()
        return ((values - mean) * scale).to(rows.dtype), scale.flatten()
    if batch > 2 and rows[0].nbytes < _SMALL_BYTES:
        normed, scale = _batch_norm(interleaved(rows))
        return by_sample(normed, batch), scale
    # Two operators for two samples are as many as a copy and one, and need no copy.
    mean, scale = (rows.new_empty(batch, channels, dtype=sum_dtype(rows)) for _ in range(2))
    for values, mean_C, scale_C in zip(rows, mean, scale, strict=True):
        torch.ops.aten.native_batch_norm.out(
            values, None, None, None, None, True, 0.0, EPS, out=values, save_mean=mean_C, save_invstd=scale_C
        )
    return rows, scale.flatten()


def normalise_interleaved(x: Tensor) -> tuple[Tensor, Tensor]:
    """Normalise each channel of each sample of a map (B, C, X, Y, Z).

    Returns:
        interleaved rows (voxels, B * C), and the inverse of the deviations, (B * C), at least float32.
    """
    if _is_traced():
        normed, scale = normalise(x)
        return interleaved(normed), scale
    return _batch_norm(interleaved(as_rows(x)))


def activate(normed_BVC: Tensor, like: Tensor) -> Tensor:
    """Apply leaky ReLU to rows, in place or into the memory of the map `like`; return a map of its shape."""
    if normed_BVC.is_contiguous():
        return rows_to_map(torch.ops.aten.leaky_relu_(normed_BVC, SLOPE), like)
    if _is_traced():
        return rows_to_map(torch.ops.aten.leaky_relu(normed_BVC, SLOPE).contiguous(), like)
    torch.ops.aten.leaky_relu.out(normed_BVC, SLOPE, out=as_rows(like))
    return like


def activation_grad(grad: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of the input of the leaky ReLU, and that input, from its output; both interleaved.

    Args:
        grad: gradient of the output, (B, C, X, Y, Z), channels last in memory.
        out: the output, likewise.
    """
    rows, grad_rows = as_rows(out), as_rows(grad)
    batch, voxels, channels = rows.shape
    if batch == 1 or _is_traced():
        active = torch.ops.aten.leaky_relu_backward(grad_rows, rows, SLOPE, True)
        return interleaved(active), interleaved(torch.ops.aten.leaky_relu(rows, 1 / SLOPE))
    active, normed = (rows.new_empty(voxels, batch * channels) for _ in range(2))
    torch.ops.aten.leaky_relu_backward.grad_input(grad_rows, rows, SLOPE, True, grad_input=by_sample(active, batch))
    torch.ops.aten.leaky_relu.out(rows, 1 / SLOPE, out=by_sample(normed, batch))
    return active, normed


def norm_grad(grad: Tensor, normed: Tensor, scale: Tensor, like: Tensor) -> Tensor:
    """Compute the gradient of the input of the norm from its output.

    Args:
        grad: gradient of the output, interleaved.
        normed: the output, interleaved.
        scale: (B * C), the inverse of the deviations.
        like: a map of the shape of the result.

    Returns:
        (B, C, X, Y, Z), channels last in memory.
    """
    mean, variance = _unit_moments(len(scale), scale.dtype, scale.device)
    result: Tensor = torch.ops.aten.native_batch_norm_backward(
        grad, normed, scale, None, None, mean, variance, True, EPS, [True, False, False]
    )[0]
    return rows_to_map(by_sample(result, len(like)).contiguous(), like)


def interleaved(rows_BVC: Tensor) -> Tensor:
    """Return rows of the samples as (voxels, B * C); a view of one sample, else a copy."""
    return rows_BVC.transpose(0, 1).reshape(rows_BVC.shape[1], -1)


def by_sample(interleaved: Tensor, batch: int) -> Tensor:
    """View interleaved rows as (B, voxels, C)."""
    return interleaved.unflatten(1, (batch, -1)).transpose(0, 1)


def _batch_norm(interleaved: Tensor) -> tuple[Tensor, Tensor]:
    normed, _, scale = torch.native_batch_norm(interleaved, None, None, None, None, True, 0.0, EPS)
    return normed, scale


def _unit_moments(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean 0 and variance 1: those of normalised values."""
    make = _new_unit_moments if _is_traced() else _kept_unit_moments
    return make(size, dtype, device)


def _new_unit_moments(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.zeros(size, dtype=dtype, device=device), torch.ones(size, dtype=dtype, device=device)


_kept_unit_moments = cache(_new_unit_moments)


def _is_traced() -> bool:
    """Tell whether a compiler or an export records the operators: then plain ones, without writes to arguments."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()
