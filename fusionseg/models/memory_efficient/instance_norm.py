"""Instance norm, leaky ReLU and the sum with a shortcut, in place, and their gradients from their own result.

Sources: D. Ulyanov et al., "Instance Normalization" (2016, arXiv:1607.08022); for undoing it, S. Rota Bulo et al.,
"In-Place Activated BatchNorm" (2018, arXiv:1712.02616). Maps are channels last in memory.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fusionseg.models.memory_efficient.arithmetic import in_chunks, row_chunks, sum_dtype

_SLOPE = 0.01  # of the leaky ReLU
_EPS = 1e-5  # of the instance norm


def rows_of(x_BCXYZ: Tensor) -> Tensor:
    """The matrix (B, voxels, C) that a map, channels last in memory, is."""
    return x_BCXYZ.permute(0, 2, 3, 4, 1).flatten(1, 3)


def norm_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift (B, C), in 32 bits, that normalise each channel of each sample."""
    rows = rows_of(x)
    if rows.shape[1] == 1:
        raise ValueError("instance norm needs more than one voxel at every stage: use a larger volume")
    if x.device.type == "cuda" and not torch.compiler.is_compiling():  # Welford's way, made for channels last
        moments = [torch.ops.aten.batch_norm_update_stats(sample, None, None, 0.0) for sample in rows]
        mean, variance = (torch.stack(values) for values in zip(*moments, strict=True))
    elif in_chunks(x):  # the same kernel of the CPU loses half of the digits
        mean, variance = (torch.stack(values) for values in zip(*map(_moments, rows), strict=True))
    else:
        variance, mean = torch.var_mean(rows.to(sum_dtype(x)), 1, correction=0)
    scale = (variance + _EPS).rsqrt()
    return scale, -mean * scale


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (C) of a matrix (voxels, C): each chunk is read once, and the chunks' moments are joined (Chan,
    Golub and LeVeque, "Updating formulae and a pairwise algorithm", 1979).

    A chunk is made 32 bits wide first: CPU kernels for operands of two types are slow, up to tenfold.
    """
    count = 0
    mean = torch.zeros(rows.shape[1], dtype=sum_dtype(rows))
    squares = torch.zeros_like(mean)
    for part in row_chunks(rows):
        chunk = rows[part].to(mean.dtype)
        share = len(chunk) / (count + len(chunk))
        own = chunk.sum(0) / len(chunk)
        apart = own - mean
        squares += (chunk - own).square_().sum(0) + apart.square() * (count * share)
        mean += apart * share
        count += len(chunk)
    return mean, squares / count


def affine(x: Tensor, scale: Tensor, shift: Tensor) -> None:
    """x * scale + shift, in place."""
    for rows, factor, offset in zip(rows_of(x), scale, shift, strict=True):
        for part in row_chunks(rows):
            torch.addcmul(offset, rows[part], factor, out=rows[part])


def finish(x: Tensor, scale: Tensor, shift: Tensor, short: Tensor | None) -> None:
    """Norm, sum with the shortcut if there is one, and activation, in place."""
    for b, rows in enumerate(rows_of(x)):
        for part in row_chunks(rows):
            chunk = rows[part]
            torch.addcmul(shift[b], chunk, scale[b], out=chunk)
            if short is not None:
                chunk += rows_of(short)[b, part]
            F.leaky_relu_(chunk, _SLOPE)


def split_grad(
    grad: Tensor, out: Tensor, x: Tensor, shortcut: tuple[Tensor, Tensor, Tensor] | None, scale2: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient of the block's output as that of the second convolution's output and that of the shortcut.

    Args:
        shortcut: weight, scale and shift of the projection; None where the shortcut is the input `x`.
    """
    grads = grad.contiguous(memory_format=torch.channels_last_3d)
    results: list[list[Tensor]] = []
    for b, (g, z, rows) in enumerate(zip(rows_of(grads), rows_of(out), rows_of(x), strict=True)):
        weight = None if shortcut is None else shortcut[0].flatten(1).to(x.dtype)

        def pieces(
            part: slice, b: int = b, g: Tensor = g, z: Tensor = z, rows: Tensor = rows, weight: Tensor | None = weight
        ) -> tuple[Tensor, Tensor, Tensor]:
            short = rows[part]
            if shortcut is not None and weight is not None:
                short = torch.addcmul(shortcut[2][b], short @ weight.mT, shortcut[1][b]).to(z.dtype)
            active = torch.ops.aten.leaky_relu_backward(g[part], z[part], _SLOPE, True)
            return active, F.leaky_relu(z[part], 1 / _SLOPE) - short, short

        results.append(_norm_grads(g, pieces, scale2[b], None if shortcut is None else shortcut[1][b]))
    main, short = (_joined([pair[i] for pair in results], out) for i in range(2))
    return main, short


def undo_grad(grad: Tensor, out: Tensor, scale: Tensor) -> Tensor:
    """The gradient before norm and activation, of the one after them; the latter may be overwritten."""
    results = []
    for g, z, factor in zip(rows_of(grad), rows_of(out), scale, strict=True):

        def pieces(part: slice, g: Tensor = g, z: Tensor = z) -> tuple[Tensor, Tensor, None]:
            active = torch.ops.aten.leaky_relu_backward(g[part], z[part], _SLOPE, True)
            return active, F.leaky_relu(z[part], 1 / _SLOPE), None

        results.append(_norm_grads(g, pieces, factor, None, into=g)[0])
    return _joined(results, out)


def _norm_grads(
    like: Tensor,
    pieces: Callable[[slice], tuple[Tensor, Tensor, Tensor | None]],
    scale: Tensor,
    scale_short: Tensor | None,
    into: Tensor | None = None,
) -> list[Tensor]:
    """The gradients of what two norms of one sample got, of that of what they gave.

    Args:
        like: a matrix (voxels, C) as the results will be.
        pieces: gives, for some rows, the gradient and the normalised values of both norms.
        scale: (C) of the first norm.
        scale_short: (C) of the second; without it, the second result is the gradient itself.
        into: where the first result may be written.
    """
    parts = row_chunks(like)
    if len(parts) == 1:
        grad, normed, short = pieces(parts[0])
        first = _norm_grad(grad, normed, scale)
        return [first, grad if scale_short is None or short is None else _norm_grad(grad, short, scale_short)]
    sums = torch.zeros(3, like.shape[1], dtype=sum_dtype(like))
    for part in parts:
        grad, normed, short = pieces(part)
        sums[0] += grad.sum(0, dtype=sums.dtype)
        sums[1] += normed.mul_(grad).sum(0, dtype=sums.dtype)
        if scale_short is not None and short is not None:
            sums[2] += short.mul_(grad).sum(0, dtype=sums.dtype)
    mean, along, along_short = sums / len(like)
    main = torch.empty_like(like) if into is None else into
    second = torch.empty_like(like) if into is None else main
    for part in parts:
        grad, normed, short = pieces(part)
        centred = grad - mean
        if into is None:
            if scale_short is None or short is None:
                second[part] = grad
            else:
                second[part] = torch.addcmul(centred, short, along_short, value=-1).mul_(scale_short)
        main[part] = centred.addcmul_(normed, along, value=-1).mul_(scale)
    return [main, second]


def _norm_grad(grad: Tensor, normed: Tensor, scale: Tensor) -> Tensor:
    """Backward of a norm over rows, from the normalised values: torch's own, told that they have mean 0 and scale 1."""
    zero, one = torch.zeros_like(scale), torch.ones_like(scale)
    result: Tensor = torch.ops.aten.native_batch_norm_backward(
        grad, normed, scale, None, None, zero, one, True, _EPS, [True, False, False]
    )[0]
    return result


def _joined(samples: list[Tensor], like: Tensor) -> Tensor:
    """Matrices (voxels, C) of the samples as a map in the shape of `like`."""
    rows = samples[0].unsqueeze(0) if len(samples) == 1 else torch.stack(samples)
    return rows.unflatten(1, like.shape[2:]).permute(0, 4, 1, 2, 3)
