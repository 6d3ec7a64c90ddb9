"""Instance norm, sum with a shortcut and leaky ReLU, in place, with gradients computed from their result.

A few rows are computed at a time, for the cache of a CPU; `whole_maps` has the same for whole maps.

Sources: D. Ulyanov et al., "Instance Normalization" (2016, arXiv:1607.08022); for the gradients, S. Rota
Bulo et al., "In-Place Activated BatchNorm" (2018, section 3, arXiv:1712.02616). Maps are channels-last in memory.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fusionseg.models.memory_efficient.autograd_helpers import row_blocks, row_chunks, sum_dtype

SLOPE = 0.01  # negative slope of the leaky ReLU
EPS = 1e-5  # added to the variance by the instance norm


def as_rows(x_BCXYZ: Tensor) -> Tensor:
    """View a map in channels-last memory format as matrices (B, voxels, C)."""
    return x_BCXYZ.permute(0, 2, 3, 4, 1).flatten(1, 3)


def norm_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the scale and shift (B, C), at least float32, that normalise each channel of each sample.

    Raises:
        ValueError: the map has a single voxel, whose variance is 0.
    """
    rows = as_rows(x)
    refuse_single_voxel(rows)
    mean, variance = (torch.stack(values) for values in zip(*map(_moments, rows), strict=True))
    scale = (variance + EPS).rsqrt()
    return scale, -mean * scale


def refuse_single_voxel(rows_BVC: Tensor) -> None:
    """Raise ValueError for a map with a single voxel, whose variance is 0."""
    if rows_BVC.shape[1] == 1:
        raise ValueError(
            "instance norm: a map has a single voxel (expected at least 2 at every stage); use a larger volume"
        )


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean and variance (C) of a matrix (voxels, C).

    Each chunk is read once, and the moments of the chunks are combined (Chan, Golub and LeVeque, "Updating formulae and
    a pairwise algorithm for computing sample variances", 1979).

    A chunk is converted to float32 first: CPU kernels with operands of two dtypes are up to ten times slower.
    """
    count = 0
    mean = torch.zeros(rows.shape[1], dtype=sum_dtype(rows), device=rows.device)
    squares = torch.zeros_like(mean)
    for part in row_chunks(rows):
        chunk = rows[part].to(mean.dtype)
        fraction = len(chunk) / (count + len(chunk))
        chunk_mean = chunk.sum(0) / len(chunk)
        difference = chunk_mean - mean
        squares += (chunk - chunk_mean).square_().sum(0) + difference.square() * (count * fraction)
        mean += difference * fraction
        count += len(chunk)
    return mean, squares / count


def unit_moments(scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean 0 and variance 1, each (C), for the gradients of norms from their normalised output.

    Args:
        scale: (B, C), of a norm.
    """
    return torch.zeros_like(scale[0]), torch.ones_like(scale[0])


def scale_and_shift_(x: Tensor, scale: Tensor, shift: Tensor) -> None:
    """Compute x * scale + shift in place; x (B, C, X, Y, Z), scale and shift (B, C)."""
    rows = as_rows(x)
    for samples, part in row_blocks(rows):
        block = rows[samples, part]
        torch.addcmul(shift[samples, None], block, scale[samples, None], out=block)


def norm_activation_(x: Tensor, scale: Tensor, shift: Tensor, short: Tensor | None) -> None:
    """Normalise, add the shortcut and apply leaky ReLU, in place.

    Args:
        x: map (B, C, X, Y, Z).
        scale: (B, C), see `norm_statistics`.
        shift: (B, C).
        short: the shortcut, of the shape of `x`; None adds nothing.
    """
    rows = as_rows(x)
    for samples, part in row_blocks(rows):
        block = rows[samples, part]
        torch.addcmul(shift[samples, None], block, scale[samples, None], out=block)
        if short is not None:
            block += as_rows(short)[samples, part]
        F.leaky_relu_(block, SLOPE)


def block_output_grads(
    grad: Tensor,
    out: Tensor,
    x: Tensor,
    shortcut: tuple[Tensor, Tensor, Tensor] | None,
    scale2: Tensor,
    moments: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of the second convolution's output and of the shortcut's convolution.

    Args:
        grad: gradient of the block's output.
        out: the block's output.
        x: the block's input.
        shortcut: weight, scale and shift of the projection; None if the shortcut is the input. Its gradient is then
            that of the input.
        scale2: (B, C), scale of the second norm.
        moments: `unit_moments`.
    """
    grads = grad.contiguous(memory_format=torch.channels_last_3d)
    results: list[list[Tensor]] = []
    for b, (g, z, rows) in enumerate(zip(as_rows(grads), as_rows(out), as_rows(x), strict=True)):
        weight = None if shortcut is None else shortcut[0].flatten(1).to(x.dtype)

        def chunk_values(
            part: slice, b: int = b, g: Tensor = g, z: Tensor = z, rows: Tensor = rows, weight: Tensor | None = weight
        ) -> tuple[Tensor, Tensor, Tensor]:
            short = rows[part]
            if shortcut is not None and weight is not None:
                short = torch.addcmul(shortcut[2][b], short @ weight.mT, shortcut[1][b]).to(z.dtype)
            active = torch.ops.aten.leaky_relu_backward(g[part], z[part], SLOPE, True)
            return active, F.leaky_relu(z[part], 1 / SLOPE) - short, short

        results.append(_norm_grads(g, chunk_values, scale2[b], None if shortcut is None else shortcut[1][b], moments))
    main, short = (rows_to_map(_stack([pair[i] for pair in results]), out) for i in range(2))
    return main, short


def norm_activation_grad(grad: Tensor, out: Tensor, scale: Tensor, moments: tuple[Tensor, Tensor]) -> Tensor:
    """Compute the gradient of the input of norm and activation.

    Args:
        grad: gradient of the activation's output; it may be overwritten.
        out: the activation's output.
        scale: (B, C), scale of the norm.
        moments: `unit_moments`.
    """
    results = []
    for g, z, factor in zip(as_rows(grad), as_rows(out), scale, strict=True):

        def chunk_values(part: slice, g: Tensor = g, z: Tensor = z) -> tuple[Tensor, Tensor, None]:
            active = torch.ops.aten.leaky_relu_backward(g[part], z[part], SLOPE, True)
            return active, F.leaky_relu(z[part], 1 / SLOPE), None

        results.append(_norm_grads(g, chunk_values, factor, None, moments, into=g)[0])
    return rows_to_map(_stack(results), out)


def _norm_grads(
    like: Tensor,
    chunk_values: Callable[[slice], tuple[Tensor, Tensor, Tensor | None]],
    scale: Tensor,
    scale_short: Tensor | None,
    moments: tuple[Tensor, Tensor],
    into: Tensor | None = None,
) -> list[Tensor]:
    """Compute the gradients of the inputs of two instance norms of one sample whose outputs are added.

    Args:
        like: matrix (voxels, C) with the shape and dtype of the results.
        chunk_values: for a slice of rows returns the gradient of the sum and the normalised values of both norms.
        scale: (C), scale of the first norm.
        scale_short: (C), scale of the second norm; None if there is no norm: the second result is then the gradient of
            the sum.
        moments: `unit_moments`.
        into: matrix for the first result; the second result is then not computed.
    """
    parts = row_chunks(like)
    if len(parts) == 1:
        grad, normed, short = chunk_values(parts[0])
        first = _norm_grad(grad, normed, scale, moments)
        return [first, grad if scale_short is None or short is None else _norm_grad(grad, short, scale_short, moments)]
    sums = torch.zeros(3, like.shape[1], dtype=sum_dtype(like), device=like.device)
    for part in parts:
        grad, normed, short = chunk_values(part)
        sums[0] += grad.sum(0, dtype=sums.dtype)
        sums[1] += normed.mul_(grad).sum(0, dtype=sums.dtype)
        if scale_short is not None and short is not None:
            sums[2] += short.mul_(grad).sum(0, dtype=sums.dtype)
    mean, projection, projection_short = sums / len(like)
    main = torch.empty_like(like) if into is None else into
    second = torch.empty_like(like) if into is None else main
    for part in parts:
        grad, normed, short = chunk_values(part)
        centred = grad - mean
        if into is None:
            if scale_short is None or short is None:
                second[part] = grad
            else:
                second[part] = torch.addcmul(centred, short, projection_short, value=-1).mul_(scale_short)
        main[part] = centred.addcmul_(normed, projection, value=-1).mul_(scale)
    return [main, second]


def _norm_grad(grad: Tensor, normed: Tensor, scale: Tensor, moments: tuple[Tensor, Tensor]) -> Tensor:
    """Compute the gradient of a norm over rows (voxels, C) from its output, with torch's batch norm."""
    result: Tensor = torch.ops.aten.native_batch_norm_backward(
        grad, normed, scale, None, None, *moments, True, EPS, [True, False, False]
    )[0]
    return result


def _stack(samples: list[Tensor]) -> Tensor:
    """Stack the matrices (voxels, C) of the samples."""
    return samples[0].unsqueeze(0) if len(samples) == 1 else torch.stack(samples)


def rows_to_map(rows: Tensor, like: Tensor) -> Tensor:
    """View rows (B, voxels, C) as a map of the shape of `like`."""
    return rows.unflatten(1, like.shape[2:]).permute(0, 4, 1, 2, 3)
