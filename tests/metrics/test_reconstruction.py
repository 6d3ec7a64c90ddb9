"""SSIM and PSNR against MONAI and SciPy, the reconstruction loss, the simple fills, the picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics.regression import PSNRMetric, compute_ssim_and_cs
from numpy.typing import NDArray
from scipy.ndimage import correlate1d
from torch import Tensor

from fusionseg.config.pretraining import ReconstructionLossConfig
from fusionseg.losses.reconstruction import ReconstructionLoss, clamp_straight_through
from fusionseg.metrics.reconstruction import ssim_and_psnr, ssim_map
from fusionseg.models.masked.fills import fill_linear, fill_mean
from fusionseg.models.masked.masking import blocks_to_voxels, composite
from fusionseg.observability.pictures import reconstruction_strip

GRID, PATCH = (2, 3, 2), (16, 24, 16)


def images(channels: int = 1) -> tuple[Tensor, Tensor]:
    """Two similar but different batches of two samples."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, channels, *PATCH, generator=generator)
    return image, image + 0.3 * torch.randn(image.shape, generator=generator)


def blocks() -> Tensor:
    """Hidden blocks (2, 2, 3, 2): half of the blocks of each sample, at different positions."""
    hidden = torch.zeros(2, 12, dtype=torch.bool)
    hidden[0, ::2] = hidden[1, 6:] = True
    return hidden.view(2, *GRID)


def loss_of(reconstruction: Tensor, image: Tensor, hidden: Tensor, **settings: object) -> Tensor:
    config = ReconstructionLossConfig.model_validate({"ssim": 0.0, **settings})
    return ReconstructionLoss(config, data_range=6.0)(reconstruction, (image, hidden))


def scipy_ssim(x: NDArray[np.float64], y: NDArray[np.float64], data_range: float) -> NDArray[np.float64]:
    """SSIM map of volumes (C, X, Y, Z) with SciPy: a Gaussian window of 11 voxels, cut off at the border."""
    taps = np.exp(-((np.arange(-5, 6) / 1.5) ** 2) / 2)

    def mean(volume: NDArray[np.float64]) -> NDArray[np.float64]:
        total, weight = volume, np.ones_like(volume)
        for axis in (1, 2, 3):
            total, weight = (correlate1d(v, taps, axis, mode="constant") for v in (total, weight))
        return total / weight

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean_x, mean_y = mean(x), mean(y)
    variances = mean(x * x) - mean_x**2 + mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    return (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))


@pytest.mark.parametrize(("channels", "data_range"), [(1, 6.0), (2, 1.0)])
def test_ssim_away_from_the_border_is_that_of_monai(channels: int, data_range: float) -> None:
    image, other = images(channels)
    theirs, _ = compute_ssim_and_cs(other, image, 3, [11] * 3, [1.5] * 3, data_range)
    ours = ssim_map(other, image, data_range)
    assert ours.shape == image.shape
    torch.testing.assert_close(ours[..., 5:-5, 5:-5, 5:-5], theirs, rtol=0, atol=1e-5)


def test_ssim_at_the_border_is_that_of_the_cut_off_window() -> None:
    image, other = images()
    place = torch.arange(6) ** 2
    axis = torch.exp(-place / (2 * 1.5**2))
    window = torch.einsum("x,y,z->xyz", axis, axis, axis)
    window /= window.sum()
    x, y = (volume[0, 0, :6, :6, :6] for volume in (other, image))  # the voxels in the window of the corner
    mean_x, mean_y = (window * x).sum(), (window * y).sum()
    square_x, square_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
    product = (window * (x - mean_x) * (y - mean_y)).sum()
    c1, c2 = 0.06**2, 0.18**2
    expected = (2 * mean_x * mean_y + c1) * (2 * product + c2)
    expected /= (mean_x**2 + mean_y**2 + c1) * (square_x + square_y + c2)
    torch.testing.assert_close(ssim_map(other, image, 6.0)[0, 0, 0, 0, 0], expected)


def test_ssim_of_a_patch_thinner_than_the_window() -> None:
    image = torch.randn(1, 1, 4, 16, 1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ssim_map(image, image, 6.0), torch.ones_like(image))
    assert (ssim_map(image + 1, image, 6.0) < 1).all()


def test_ssim_and_psnr_against_scipy() -> None:
    """The volume is larger than a chunk along one axis, thinner than the window along another, with two channels."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 70, 13, 4))
    hidden = rng.random((1, 70, 13, 4)) < 0.4
    filled = np.where(hidden, image + 0.5 * rng.normal(size=image.shape), image)
    metrics = ssim_and_psnr(*map(torch.from_numpy, (filled, image, hidden)), data_range=6.0)
    similarity = scipy_ssim(filled, image, 6.0)
    over = np.broadcast_to(hidden, image.shape)
    error = (filled - image) ** 2
    assert metrics == pytest.approx(
        {
            "ssim": similarity.mean(),
            "psnr": 10 * np.log10(36 / error.mean()),
            "ssim_hidden": similarity[over].mean(),
            "psnr_hidden": 10 * np.log10(36 / error[over].mean()),
        },
        abs=1e-9,
    )
    assert metrics["ssim_hidden"] < metrics["ssim"] < 1


def test_psnr_is_that_of_monai() -> None:
    image, other = images()
    theirs = PSNRMetric(max_val=6.0)(other, image)
    hidden = torch.ones(1, *PATCH, dtype=torch.bool)
    for sample in range(2):
        metrics = ssim_and_psnr(other[sample], image[sample], hidden, 6.0)
        assert metrics["psnr"] == pytest.approx(float(theirs[sample]), abs=1e-4)
        assert metrics["psnr_hidden"] == metrics["psnr"]


def test_psnr_of_a_perfect_reconstruction_is_finite() -> None:
    air = torch.zeros(1, *PATCH)
    metrics = ssim_and_psnr(air, air, torch.zeros(1, *PATCH, dtype=torch.bool), 1.0)
    assert (metrics["ssim"], metrics["psnr"]) == pytest.approx((1.0, 100.0))
    assert np.isnan(metrics["ssim_hidden"]) and np.isnan(metrics["psnr_hidden"])  # nothing was hidden


def test_blocks_to_voxels() -> None:
    hidden = torch.tensor([[[[True, False]], [[False, True]]]])
    voxels = blocks_to_voxels(hidden, (4, 3, 2))
    assert voxels.shape == (1, 1, 4, 3, 2)
    assert voxels[0, 0, :2, :, 0].all() and voxels[0, 0, 2:, :, 1].all() and voxels.sum() == 12


def test_loss_is_the_weighted_sum_of_its_terms() -> None:
    image, other = images()
    difference = other - image
    expected = (
        2 * (1 - ssim_map(other, image, 6.0).mean()) + 0.5 * difference.abs().mean() + 3 * difference.square().mean()
    )
    torch.testing.assert_close(loss_of(other, image, blocks(), ssim=2, l1=0.5, l2=3), expected)


@pytest.mark.parametrize("weight", ["ssim", "l1", "l2"])
def test_errors_of_visible_voxels_do_not_count_over_masked(weight: str) -> None:
    image, other = images()
    hidden = blocks()
    voxels = blocks_to_voxels(hidden, PATCH)
    worse = torch.where(voxels, other, other + 5)
    masked = [loss_of(x, image, hidden, over="masked", **{weight: 1}) for x in (other, worse)]
    assert masked[0] == masked[1] > 0
    assert loss_of(worse, image, hidden, **{weight: 1}) > loss_of(other, image, hidden, **{weight: 1})
    only_visible_wrong = composite(image, other, voxels)
    assert loss_of(only_visible_wrong, image, hidden, over="masked", **{weight: 1}) == pytest.approx(0, abs=1e-6)


def test_loss_is_computed_in_float32() -> None:
    image, other = images()
    expected = loss_of(other, image, blocks(), ssim=1)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss_of(other, image, blocks(), ssim=1), expected)
    rounded = other.bfloat16()
    expected = loss_of(rounded.float(), image, blocks(), ssim=1)
    torch.testing.assert_close(loss_of(rounded, image, blocks(), ssim=1), expected)


def test_gradient_step_reduces_the_ssim_loss() -> None:
    image, other = images()
    other.requires_grad_()
    loss = loss_of(other, image, blocks(), ssim=1)
    (gradient,) = torch.autograd.grad(loss, other)
    assert loss_of(other.detach() - 10 * gradient, image, blocks(), ssim=1) < loss
    assert loss_of(image, image, blocks(), ssim=1) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("fill", [fill_mean, fill_linear])
def test_fills_keep_visible_voxels_and_ignore_hidden_ones(fill: object) -> None:
    assert callable(fill)
    image, other = images(channels=2)
    voxels = blocks_to_voxels(blocks(), PATCH)
    filled = fill(image, voxels)
    assert torch.equal(torch.where(voxels, 0, filled), torch.where(voxels, 0, image))
    assert torch.equal(fill(composite(other, image, voxels), voxels), filled)


def test_values_beyond_the_limits() -> None:
    """An output below 0 has no error where the image is 0. Where the image is 0.5 it has the gradient of its error."""
    image = torch.zeros(1, 1, 16, 16, 16)
    image[..., 8:] = 0.5
    given = torch.full_like(image, -0.25, requires_grad=True)
    config = ReconstructionLossConfig(ssim=0.0, l2=1.0)
    loss = ReconstructionLoss(config, data_range=1.0, limits=(0.0, 1.0))
    value = loss(given, (image, torch.ones(1, 1, 1, 1, dtype=torch.bool)))
    value.backward()
    assert value.item() == pytest.approx(0.5 * 0.5**2)
    assert given.grad is not None
    assert torch.all(given.grad[..., :8] == 0)
    assert torch.all(given.grad[..., 8:] < 0)
    assert clamp_straight_through(torch.tensor([-1.0, 0.5, 3.0]), (0.0, 1.0)).tolist() == [0.0, 0.5, 1.0]
    assert clamp_straight_through(torch.tensor([-1.0, 3.0]), None).tolist() == [-1.0, 3.0]


def test_fill_mean_is_the_mean_of_the_visible_voxels_per_sample_and_channel() -> None:
    image, _ = images(channels=2)
    voxels = blocks_to_voxels(blocks(), PATCH)
    filled = fill_mean(image, voxels)
    for sample in range(2):
        for channel in range(2):
            own, hidden = image[sample, channel], voxels[sample, 0]
            torch.testing.assert_close(filled[sample, channel][hidden], own[~hidden].mean().expand(int(hidden.sum())))


def test_fill_linear_is_exact_on_a_ramp() -> None:
    axes = [torch.arange(12.0)] * 3
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    ramp = torch.stack([2 * x - y + 0.5 * z + 1, z])[None]
    hidden = torch.zeros(1, 1, 12, 12, 12, dtype=torch.bool)
    hidden[..., 3:6, 2:10, 4:7] = True
    torch.testing.assert_close(fill_linear(ramp, hidden), ramp)


def test_fill_linear_weights_neighbours_by_inverse_distance() -> None:
    image = torch.tensor([3.0, 9.0, 9.0, 9.0, 7.0]).view(1, 1, 5, 1, 1)
    hidden = torch.tensor([False, True, True, True, False]).view(1, 1, 5, 1, 1)
    assert fill_linear(image, hidden).flatten().tolist() == pytest.approx([3, 4, 5, 6, 7])
    at_the_end = torch.tensor([False, False, True, True, True]).view(1, 1, 5, 1, 1)
    assert fill_linear(image, at_the_end).flatten().tolist() == [3, 9, 9, 9, 9]
    # Along two axes: value 1 at distance 1, value 4 at distance 2.
    cross = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 4.0]]).view(1, 1, 3, 2, 1)
    seen = torch.tensor([[True, False], [False, False], [False, True]]).view(1, 1, 3, 2, 1)
    assert fill_linear(cross, ~seen)[0, 0, 0, 1, 0] == pytest.approx((1 / 1 + 4 / 2) / (1 / 1 + 1 / 2))


def test_fill_linear_is_the_mean_without_a_visible_neighbour_along_any_axis() -> None:
    image = torch.arange(8.0).view(1, 1, 2, 2, 2)
    hidden = torch.ones(1, 1, 2, 2, 2, dtype=torch.bool)
    hidden[0, 0, 0, 0, 0] = hidden[0, 0, 0, 0, 1] = False
    assert fill_linear(image, hidden)[0, 0, 1, 1].tolist() == [0.5, 0.5]


def test_strip_of_three_slices_uses_the_grey_range_of_the_first() -> None:
    image = np.linspace(0, 100, 12 * 8).reshape(12, 8)
    strip = reconstruction_strip(image, np.where(image > 50, 0, image), image + 1000)
    assert strip.shape == (3, 8, 36) and strip.dtype == np.float32
    first, second, third = np.split(strip, 3, axis=2)
    assert strip.min() == 0 and strip.max() == 1
    assert (second <= first).all() and (second < first).any() and (third == 1).all()
    assert first[0, 0, -1] > first[0, -1, -1]  # the second axis points up
