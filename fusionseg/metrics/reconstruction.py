"""Metrics of a masked reconstruction: SSIM and PSNR of whole volumes and of their hidden voxels.

Volumes are (B, C, X, Y, Z); hidden voxels are (B, 1, X, Y, Z), True where the network was not shown the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from math import log10, nan

import torch
from torch import Tensor

# Wang et al. (2004), section III.B and C: the Gaussian window and the two constants.
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03

_LEAST_ERROR = 1e-10  # as a share of the squared range
_PIECE = 64


def quality(
    filled: Tensor, image: Tensor, hidden: Tensor, data_range: float, device: torch.device | None = None
) -> dict[str, float]:
    """SSIM and PSNR (dB) of a volume whose hidden voxels are filled in.

    `ssim` is the mean of the volume's SSIM map, `psnr` that of its mean squared error; `ssim_hidden` and `psnr_hidden`
    are the same over the hidden voxels alone, nan where none is hidden. The PSNR is 100 dB at most: of a volume of
    nothing but air it would be infinite, and so would every mean over it.

    The map is computed in pieces, in double precision: the device holds one piece, however large the volume.

    Args:
        filled, image: (C, X, Y, Z). Outside of this volume there is nothing: padding has no part in any figure.
        hidden: (1, X, Y, Z), True where the image was filled in.
        data_range: of the intensities.
        device: where to compute; None is where the image lies.
    """
    device = image.device if device is None else device
    # rows: all voxels, hidden ones; columns: sums of similarity and of squared error, number of values
    sums = torch.zeros(2, 3, dtype=torch.float64, device=device)
    for core in _pieces(image.shape[1:]):
        # The map at a voxel depends on the half window around it: cut with that, a piece has the whole volume's values.
        reach = [
            slice(max(0, side.start - SSIM_WINDOW // 2), min(size, side.stop + SSIM_WINDOW // 2))
            for side, size in zip(core, image.shape[1:], strict=True)
        ]
        inner = within_box(core, reach)
        x, y = (volume[(slice(None), *reach)].to(device).double() for volume in (filled, image))
        similarity = ssim_map(x[None], y[None], data_range)[0][(slice(None), *inner)]
        error = (x - y)[(slice(None), *inner)].square()
        over = hidden[(slice(None), *core)].to(device)
        for row, voxels in enumerate((torch.ones_like(over), over)):
            for column, values in enumerate((similarity, error, torch.ones_like(error))):
                sums[row, column] += torch.where(voxels, values, 0).sum()
    figures = {}
    for suffix, (similar, wrong, count) in zip(("", "_hidden"), sums.tolist(), strict=True):
        share = wrong / count / data_range**2 if count else nan
        figures[f"ssim{suffix}"] = similar / count if count else nan
        figures[f"psnr{suffix}"] = -10 * log10(max(share, _LEAST_ERROR)) if count else nan
    return figures


def within_box(box: Sequence[slice], outer: Sequence[slice]) -> tuple[slice, ...]:
    """A box of a volume as voxels of another one that holds it."""
    return tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, outer, strict=True))


def _pieces(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Boxes of at most _PIECE voxels' edge that tile a volume."""
    yield from product(*([slice(n, min(n + _PIECE, size)) for n in range(0, size, _PIECE)] for size in shape))


def ssim_map(x: Tensor, y: Tensor, data_range: float) -> Tensor:
    """The structural similarity (Wang et al., 2004, doi:10.1109/TIP.2003.819861) at every voxel, (B, C, X, Y, Z).

    The window is the paper's Gaussian of 11 voxels in each axis. At the border it is cut off and its weights are
    rescaled to sum to 1, so that each voxel has a value, and patches thinner than the window too. Further inside than
    half a window this is MONAI's `compute_ssim_and_cs`, which has no values at the border. It is computed in float32,
    and in double precision where that is given.

    The Gaussian is separable, so filtering an axis is a product with a band matrix. On a CPU, with the gradient, that
    takes a fortieth of the time of MONAI's direct convolution; and its backward pass adds in a fixed order.
    """
    with full_precision(x.device):
        if x.dtype != torch.float64:
            x, y = x.float(), y.float()
        band_x, band_y, band_z = (_gaussian_band(size, x) for size in x.shape[2:])
        maps = torch.stack([x, y, x * x, y * y, x * y])
        maps = band_y @ (maps @ band_z.mT)
        maps = (band_x @ maps.flatten(-2)).unflatten(-1, maps.shape[-2:])
        mean_x, mean_y, square_x, square_y, mean_xy = maps.unbind()
        c1, c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2
        variances = square_x - mean_x.square() + square_y - mean_y.square()
        luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
        return luminance * (2 * (mean_xy - mean_x * mean_y) + c2) / (variances + c2)


def _gaussian_band(size: int, like: Tensor) -> Tensor:
    """The matrix (size, size) that filters an axis with the Gaussian window; its rows sum to 1."""
    place = torch.arange(size, device=like.device, dtype=like.dtype)
    distance = (place[:, None] - place).abs()
    window = torch.exp(-(distance / SSIM_SIGMA).square() / 2) * (distance <= SSIM_WINDOW // 2)
    return window / window.sum(dim=1, keepdim=True)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast off: the variances are differences of large numbers. The meta device knows no autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
