"""What a reconstruction of hidden voxels is worth: loss, metrics, and the trivial fill-ins that it has to beat.

Volumes are (B, C, X, Y, Z); hidden voxels are (B, 1, X, Y, Z), True where the network was not shown the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from math import log10, nan

import torch
from torch import Tensor

from fusionseg.config.pretraining import ReconstructionLossConfig

# Wang et al. (2004), section III.B and C: the Gaussian window and the two constants.
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03

_LEAST_ERROR = 1e-10  # as a share of the squared range
_PIECE = 64


class ReconstructionLoss:
    """The weighted sum of 1 - SSIM, the mean absolute and the mean squared difference that a configuration names.

    Over all voxels it judges what the network gives, the visible voxels too, as the thesis does. Over the masked ones
    it judges the composite: the SSIM of a hidden voxel looks at its neighbours, and those that were visible are to be
    the image's own, whatever the network says of them.

    Args:
        data_range: of the intensities, for SSIM.
        limits: lowest and highest intensity there is, if that is known; see `within`.
    """

    def __init__(
        self, config: ReconstructionLossConfig, data_range: float, limits: tuple[float, float] | None = None
    ) -> None:
        self.config = config
        self.data_range = data_range
        self.limits = limits

    def __call__(self, reconstruction: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        """The mean over the micro-batch, in float32 also under autocast.

        Args:
            target: the image, and the hidden blocks (B, gx, gy, gz); each sample hides as many.
        """
        image, hidden = target
        voxels: Tensor | None = None
        with _full_precision(image.device):
            image, reconstruction = image.float(), within(reconstruction.float(), self.limits)
            if self.config.over == "masked":
                voxels = blocks_to_voxels(hidden, image.shape[2:])
                reconstruction = composite(reconstruction, image, voxels)
            difference = reconstruction - image
            loss = torch.zeros((), device=image.device)
            if self.config.ssim:
                similarity = ssim_map(reconstruction, image, self.data_range)
                loss = loss + self.config.ssim * (1 - _mean(similarity, voxels).mean())
            if self.config.l1:
                loss = loss + self.config.l1 * _mean(difference.abs(), voxels).mean()
            if self.config.l2:
                loss = loss + self.config.l2 * _mean(difference.square(), voxels).mean()
        return loss


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
    with _full_precision(x.device):
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


def blocks_to_voxels(hidden: Tensor, patch: Sequence[int]) -> Tensor:
    """Blocks (B, gx, gy, gz) that tile a patch, as its voxels (B, 1, X, Y, Z)."""
    (x, y, z), (gx, gy, gz) = patch, hidden.shape[1:]
    blocks = hidden[:, None, :, None, :, None, :, None]
    return blocks.expand(-1, 1, -1, x // gx, -1, y // gy, -1, z // gz).reshape(-1, 1, x, y, z)


def composite(reconstruction: Tensor, image: Tensor, hidden_voxels: Tensor) -> Tensor:
    """The image, with the reconstruction at its hidden voxels."""
    return torch.where(hidden_voxels, reconstruction, image)


def within(reconstruction: Tensor, limits: tuple[float, float] | None) -> Tensor:
    """The reconstruction clamped to the lowest and highest intensity.

    In a window most of a CT is exactly its lower or upper end, and SSIM is strict about noise where nothing is. The
    gradient passes as if nothing were clamped: what lies beyond a limit and belongs inside is still pulled back.
    """
    if limits is None:
        return reconstruction
    return reconstruction + (reconstruction.clamp(*limits) - reconstruction).detach()


def fill_mean(image: Tensor, hidden_voxels: Tensor) -> Tensor:
    """The image, with the mean of the visible voxels of its sample and channel at its hidden voxels."""
    mean = _mean_of_each(image, ~hidden_voxels)
    return torch.where(hidden_voxels, mean, image)


def fill_linear(image: Tensor, hidden_voxels: Tensor) -> Tensor:
    """The image, its hidden voxels interpolated from the nearest visible ones before and after them on each axis.

    The up to six neighbours are weighted by the inverse of their distance. On one axis that is linear interpolation
    between two of them, and the value of the only one; the axes' answers are averaged, those with nearer neighbours
    counting more. Where no axis has a visible voxel, it is the mean of the visible ones.
    """
    visible = ~hidden_voxels
    total = torch.zeros_like(image)
    weights = torch.zeros_like(image)
    for axis in (2, 3, 4):
        for reverse in (False, True):
            value, weight = _last_visible(image, visible, axis, reverse=reverse)
            total = total + weight * value
            weights = weights + weight
    filled = torch.where(weights > 0, total / weights.clamp(min=1e-12), _mean_of_each(image, visible))
    return torch.where(hidden_voxels, filled, image)


def _last_visible(image: Tensor, visible: Tensor, axis: int, *, reverse: bool) -> tuple[Tensor, Tensor]:
    """For each voxel the last visible one before it on an axis (with `reverse`, after it): value, 1 / distance."""
    if reverse:
        value, weight = _last_visible(image.flip(axis), visible.flip(axis), axis, reverse=False)
        return value.flip(axis), weight.flip(axis)
    shape = [1] * image.dim()
    shape[axis] = -1
    place = torch.arange(image.shape[axis], device=image.device).view(shape)
    last = torch.where(visible, place, -1).cummax(dim=axis).values
    value = image.gather(axis, last.clamp(min=0).expand_as(image))
    weight = (last >= 0) / (place - last).clamp(min=1)
    return value, weight


def _mean_of_each(x: Tensor, over: Tensor) -> Tensor:
    """Mean of each sample and channel over some voxels, (B, C, 1, 1, 1)."""
    axes = (2, 3, 4)
    return torch.where(over, x, 0).sum(axes, keepdim=True) / over.sum(axes, keepdim=True)


def _mean(x: Tensor, over: Tensor | None) -> Tensor:
    """Mean of each sample, (B,), over all voxels or over some."""
    if over is None:
        return x.flatten(1).mean(1)
    return torch.where(over, x, 0).flatten(1).sum(1) / (over.flatten(1).sum(1) * x.shape[1])


def _gaussian_band(size: int, like: Tensor) -> Tensor:
    """The matrix (size, size) that filters an axis with the Gaussian window; its rows sum to 1."""
    place = torch.arange(size, device=like.device, dtype=like.dtype)
    distance = (place[:, None] - place).abs()
    window = torch.exp(-(distance / SSIM_SIGMA).square() / 2) * (distance <= SSIM_WINDOW // 2)
    return window / window.sum(dim=1, keepdim=True)


def _full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast off: the variances are differences of large numbers. The meta device knows no autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
