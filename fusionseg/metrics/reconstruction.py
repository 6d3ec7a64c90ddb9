"""Metrics of a masked reconstruction: SSIM and PSNR over whole volumes and over their hidden voxels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from math import log10, nan

import torch
from torch import Tensor

# Gaussian window and constants of Wang et al. (2004), sections III.B and III.C.
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03

_MIN_ERROR = 1e-10  # lower limit of the mean squared error, as a fraction of data_range**2: PSNR is at most 100 dB
_CHUNK = 64  # edge in voxels


def ssim_and_psnr(
    filled: Tensor, image: Tensor, hidden: Tensor, data_range: float, device: torch.device | None = None
) -> dict[str, float]:
    """Compute SSIM and PSNR (dB) of a volume whose hidden voxels are filled in.

    PSNR is limited to 100 dB. A volume of constant air would have an infinite PSNR, and so would a mean over volumes.

    The SSIM map is computed in float64, in chunks with an edge of 64 voxels: the device memory does not grow with the
    volume.

    Args:
        filled: the volume (C, X, Y, Z) with its hidden voxels filled in.
        image: the true image (C, X, Y, Z), without padding: every voxel counts.
        hidden: (1, X, Y, Z), True for hidden voxels.
        data_range: highest minus lowest possible intensity.
        device: device of the computation; None is the device of `image`.

    Returns:
        `ssim` (mean of the SSIM map) and `psnr` over all voxels; `ssim_hidden` and `psnr_hidden` over the hidden
        voxels, nan if no voxel is hidden.
    """
    device = image.device if device is None else device
    # Rows: all voxels, hidden voxels. Columns: sum of SSIM, sum of squared errors, number of values.
    sums = torch.zeros(2, 3, dtype=torch.float64, device=device)
    for core in _chunks(image.shape[1:]):
        # SSIM at a voxel depends on its Gaussian window: with a margin of half a window, the values in the chunk are
        # those of the whole volume.
        outer = [
            slice(max(0, side.start - SSIM_WINDOW // 2), min(size, side.stop + SSIM_WINDOW // 2))
            for side, size in zip(core, image.shape[1:], strict=True)
        ]
        inner = relative_box(core, outer)
        x, y = (volume[(slice(None), *outer)].to(device).double() for volume in (filled, image))
        similarity = ssim_map(x[None], y[None], data_range)[0][(slice(None), *inner)]
        error = (x - y)[(slice(None), *inner)].square()
        hidden_core = hidden[(slice(None), *core)].to(device)
        for row, voxels in enumerate((torch.ones_like(hidden_core), hidden_core)):
            for column, values in enumerate((similarity, error, torch.ones_like(error))):
                sums[row, column] += torch.where(voxels, values, 0).sum()
    metrics = {}
    for suffix, (ssim_sum, error_sum, count) in zip(("", "_hidden"), sums.tolist(), strict=True):
        relative_error = error_sum / count / data_range**2 if count else nan
        metrics[f"ssim{suffix}"] = ssim_sum / count if count else nan
        metrics[f"psnr{suffix}"] = -10 * log10(max(relative_error, _MIN_ERROR)) if count else nan
    return metrics


def relative_box(box: Sequence[slice], outer: Sequence[slice]) -> tuple[slice, ...]:
    """Return the slices of a box relative to the corner of an outer box.

    Args:
        box: slices of a volume, one for each axis.
        outer: slices of the same volume that contain `box`.
    """
    return tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, outer, strict=True))


def _chunks(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Yield boxes that tile a volume of this shape; their edge is at most _CHUNK voxels."""
    yield from product(*([slice(n, min(n + _CHUNK, size)) for n in range(0, size, _CHUNK)] for size in shape))


def ssim_map(x: Tensor, y: Tensor, data_range: float) -> Tensor:
    """Compute the structural similarity at every voxel (Wang et al., 2004, section III.B, doi:10.1109/TIP.2003.819861).

    The window is the paper's Gaussian of 11 voxels along each axis. At the border the window is cut off and its weights
    are rescaled to a sum of 1. So every voxel has a value, and patches may be thinner than the window. At least half a
    window away from the border the values are those of MONAI's `compute_ssim_and_cs`, which has none at the border.

    The Gaussian is separable: filtering along an axis is a product with a band matrix. On a CPU this takes a fortieth
    of the time of MONAI's direct convolution, gradient included, and the backward pass adds in a fixed order.

    Args:
        x: (B, C, X, Y, Z), any floating type; float64 is computed in float64, others in float32.
        y: (B, C, X, Y, Z), of the same type.
        data_range: highest minus lowest possible intensity.

    Returns:
        (B, C, X, Y, Z), at most 1.
    """
    with autocast_disabled(x.device):
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
    """Return the matrix (size, size) that filters an axis with the Gaussian window; the sum of each row is 1."""
    position = torch.arange(size, device=like.device, dtype=like.dtype)
    distance = (position[:, None] - position).abs()
    window = torch.exp(-(distance / SSIM_SIGMA).square() / 2) * (distance <= SSIM_WINDOW // 2)
    return window / window.sum(dim=1, keepdim=True)


def autocast_disabled(device: torch.device) -> AbstractContextManager[object]:
    """Return a context without autocast.

    SSIM's variances are differences of large numbers, for which 16 bits are not enough. The meta device has no
    autocast.
    """
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
