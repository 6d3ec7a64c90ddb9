"""Intensity augmentations against SciPy, MONAI and torch; what they draw; the same bits for any batch and threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from fusionseg.config import AugmentConfig
from fusionseg.config.registry import augmentations
from fusionseg.data.loading.augmentation_protocol import Drawn
from fusionseg.data.loading.augmentations import PlannedAugmentation, open_augmentations
from fusionseg.data.loading.intensity.section import ImageLayout, IntensitySection
from fusionseg.data.loading.purposes import FIRST_NAMED_PURPOSE, FIRST_OUTSIDE_PURPOSE

SHAPES = [(19, 17, 14), (21, 18, 1), (1, 13, 16)]  # a slice of a 2D network has one voxel along an axis
NAMES = list(augmentations.built_in())


def images(shape: tuple[int, int, int], samples: int = 2, channels: int = 2, seed: int = 0) -> Tensor:
    """Smooth structures and noise, (B, C, X, Y, Z)."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(samples, channels, *shape))
    return torch.from_numpy((ndimage.gaussian_filter(noise, (0, 0, 2, 2, 2)) * 8 + noise / 4).astype(np.float32))


def opened(name: str, channels: int = 2, through_plane: int | None = None, **keys: Any) -> PlannedAugmentation:
    (one,) = open_augmentations(AugmentConfig.model_validate({name: keys}), ImageLayout(channels, through_plane))
    return one


def changed(name: str, image: Tensor, drawn: dict[str, Any], **keys: Any) -> Tensor:
    """The images after an augmentation with these numbers; label and input are checked to stay."""
    before, label = image.clone(), torch.ones((len(image), 1, *image.shape[2:]), dtype=torch.int64)
    host = {key: np.asarray(values) for key, values in drawn.items()}
    result, same = opened(name, **keys).part.apply(image.clone(), label, Drawn(host, torch.from_numpy))
    assert same is label and label.all() and torch.equal(image, before)
    assert result.shape == image.shape and result.dtype == torch.float32 and result.isfinite().all()
    return result


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("retain_stats", [True, False])
@pytest.mark.parametrize("inverted", [True, False])
def test_gamma_is_monais(shape: tuple[int, int, int], retain_stats: bool, inverted: bool) -> None:
    from monai.transforms import AdjustContrast

    image, exponents = images(shape), [[0.7, 1.3], [1.5, 0.8]]
    name = "gamma_inverted" if inverted else "gamma"
    result = changed(name, image, {"exponent": exponents}, retain_stats=retain_stats)
    for i, channels in enumerate(exponents):
        for c, exponent in enumerate(channels):
            reference = AdjustContrast(exponent, invert_image=inverted, retain_stats=retain_stats)(image[i, c])
            np.testing.assert_allclose(result[i, c], reference, atol=2e-4)


@pytest.mark.parametrize("retain_stats", [True, False])
def test_gamma_does_not_depend_on_the_unit(retain_stats: bool) -> None:
    """Of intensities that are small numbers, such as 1e-6, no share is lost."""
    image, exponents = images((9, 8, 7)), {"exponent": [[0.7, 1.5], [1.5, 1.3]]}
    result = changed("gamma", image, exponents, retain_stats=retain_stats)
    for unit in (1e-6, 1e-9, 1e4):
        scaled = changed("gamma", image * unit, exponents, retain_stats=retain_stats)
        np.testing.assert_allclose(scaled / unit, result, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_blur_is_scipys(shape: tuple[int, int, int]) -> None:
    image = images(shape)
    sigma = np.array([[[0.5, 1.0, 0.8], [0, 0, 0]], [[1.0, 1.0, 1.0], [3.0, 0.6, 0.9]]])
    result = changed("blur", image, {"sigma": sigma})
    for i, channels in enumerate(sigma):
        for c, widths in enumerate(channels):
            reference = ndimage.gaussian_filter(image[i, c].double().numpy(), widths, mode="mirror")
            np.testing.assert_allclose(result[i, c], reference, atol=1e-5)
    assert torch.equal(result[0, 1], image[0, 1])


def test_blur_of_a_long_axis(shape: tuple[int, int, int] = (70, 3, 67)) -> None:
    """On a CPU, long axes are multiplied in blocks of their matrix."""
    image = images(shape, 1, 1)
    reference = ndimage.gaussian_filter(image[0, 0].double().numpy(), 1.5, mode="mirror")
    np.testing.assert_allclose(changed("blur", image, {"sigma": np.full((1, 1, 3), 1.5)})[0, 0], reference, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("down", ["nearest", "area"])
def test_low_resolution_is_torchs_interpolation(shape: tuple[int, int, int], down: str) -> None:
    image, zoom = images(shape), np.array([[[0.5, 0.5, 0.5], [1, 1, 1]], [[0.9, 0.6, 0.7], [0.3, 0.3, 0.3]]])
    result = changed("low_resolution", image, {"zoom": zoom}, down=down)
    for i, channels in enumerate(zoom):
        for c, shares in enumerate(channels):
            small = [max(1, round(size * share)) for size, share in zip(shape, shares, strict=True)]
            mode = "nearest-exact" if down == "nearest" else "area"
            coarse = F.interpolate(image[i, c][None, None], small, mode=mode)
            np.testing.assert_allclose(
                result[i, c], F.interpolate(coarse, shape, mode="trilinear")[0, 0], atol=1e-5
            )  # fmt: skip
    assert torch.equal(result[0, 1], image[0, 1])


def test_low_resolution_with_cubic_interpolation() -> None:
    """torch has it for two dimensions: a patch of one slice."""
    image = images((22, 19, 1), 1, 1)
    result = changed("low_resolution", image, {"zoom": np.full((1, 1, 3), 0.5)}, up="cubic")
    coarse = F.interpolate(image[..., 0], (11, 10), mode="nearest-exact")
    np.testing.assert_allclose(result[..., 0], F.interpolate(coarse, (22, 19), mode="bicubic"), atol=1e-5)


def test_the_through_plane_axis_keeps_its_resolution() -> None:
    one = opened("low_resolution", prob=1.0, channel_prob=1.0, zoom=[0.3, 0.5], through_plane=2)
    zoom = one.draw(0, 0, range(4)).values["zoom"]
    assert (zoom[..., 2] == 1).all() and (zoom[..., :2] <= 0.5).all() and (zoom[..., 0] == zoom[..., 1]).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("preserve_range", [True, False])
def test_contrast_follows_its_formula(shape: tuple[int, int, int], preserve_range: bool) -> None:
    image, factors = images(shape), np.array([[0.75, 1.25], [1.2, 1.0]])
    result = changed("contrast", image, {"factor": factors}, preserve_range=preserve_range).double()
    for i, c in np.ndindex(2, 2):
        given = image[i, c].double()
        reference = (given - given.mean()) * factors[i, c] + given.mean()
        clipped = reference.clamp(given.min(), given.max())
        assert factors[i, c] <= 1 or not torch.equal(reference, clipped)
        np.testing.assert_allclose(result[i, c], clipped if preserve_range else reference, atol=1e-5)


def test_a_factor_for_each_channel() -> None:
    image = images(SHAPES[0])
    factors = np.array([[0.75, 1.25], [1.2, 1.0]])
    result = changed("scale_intensity", image, {"factor": factors}, per_channel=True)
    np.testing.assert_allclose(result, image * torch.from_numpy(factors)[..., None, None, None], atol=1e-6)
    drawn = opened("scale_intensity", per_channel=True, prob=1.0).draw(0, 0, range(9)).values["factor"]
    assert drawn.shape == (9, 2) and len(np.unique(drawn)) == 18


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fill", ["mean", "lowest"])
def test_cutout_fills_boxes(shape: tuple[int, int, int], fill: str) -> None:
    image = images(shape)
    edge = np.array([[[0.3, 0.3, 0.3], [0, 0, 0]], [[0.5, 0.2, 1.0], [0.1, 0.1, 0.1]]])
    place = np.array([[[0.0, 0.999, 0.5], [0.5, 0.5, 0.5]], [[0.5, 0.5, 0.5], [0.999, 0.999, 0.999]]])
    result = changed("cutout", image, {"edge": edge, "place": place}, boxes=2, fill=fill)
    for i in range(2):
        mask = np.zeros(shape, bool)
        for edges, places in zip(edge[i], place[i], strict=True):
            if edges.any():
                size = np.clip(np.rint(edges * shape), 1, shape).astype(int)
                start = ((np.array(shape) - size + 1) * places).astype(int)
                mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = True
        for c in range(2):
            value = image[i, c].mean() if fill == "mean" else image[i, c].min()
            np.testing.assert_allclose(result[i, c], np.where(mask, value, image[i, c]), atol=1e-6)
    assert result[0, 0, 0, -1].ne(image[0, 0, 0, -1]).any()  # the place 0 and the place 1 are the ends of an axis


@pytest.mark.parametrize("name", NAMES)
def test_a_channel_of_one_value_stays_finite(name: str) -> None:
    """A missing channel, or a patch of background: no division by its range, which is 0."""
    one = opened(name, prob=1.0)
    image = torch.stack([torch.full((9, 8, 7), -2.5), torch.zeros(9, 8, 7)])[None].repeat(3, 1, 1, 1, 1)
    result, _ = one.apply(image.clone(), torch.zeros(3, 1, 9, 8, 7), one.draw(0, 0, range(3)), torch.from_numpy)
    assert result.isfinite().all()
    if name not in ("shift_intensity", "scale_intensity", "noise"):
        np.testing.assert_allclose(result, image, atol=1e-5)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(41, 42, 39), (9, 10, 400)])
@pytest.mark.parametrize("name", NAMES)
def test_no_bit_depends_on_the_batch_or_on_the_threads(name: str, shape: tuple[int, int, int]) -> None:
    """The patch is large enough that torch divides its sums among threads. Products of 5 to 11 rows are special."""
    image = images(shape, 3)
    one = opened(name, prob=1.0)
    label = torch.zeros(3, 1, 1, 1, 1)
    with threads(2):
        whole, _ = one.apply(image.clone(), label, one.draw(7, 5, [0, 1, 2]), torch.from_numpy)
    with threads(1):
        for k in range(3):
            alone, _ = one.apply(image[k : k + 1].clone(), label[:1], one.draw(7, 5, [k]), torch.from_numpy)
            assert torch.equal(alone[0], whole[k])


# -- draws ------------------------------------------------------------------------------------------------------------


def draws(name: str, samples: int = 3000, channels: int = 2, **keys: Any) -> tuple[NDArray[Any], dict[str, Any]]:
    found = opened(name, channels, **keys).draw(3, 0, range(samples))
    return found.hit, found.values


def test_probabilities_and_ranges_hold() -> None:
    hit, values = draws("gamma", prob=0.4, exponent=[0.7, 1.5])
    exponent = values["exponent"]
    assert hit.mean() == pytest.approx(0.4, abs=0.03) and exponent.shape == (hit.sum(), 2)
    assert 0.7 <= exponent.min() < 0.71 and 1.49 < exponent.max() <= 1.5
    assert (exponent < 1).mean() == pytest.approx(0.5, abs=0.03)  # nnU-Net: as often below 1 as above it
    assert exponent[exponent > 1].mean() == pytest.approx(1.25, abs=0.02)
    assert abs(np.corrcoef(exponent.T)[0, 1]) < 0.1  # each channel has its own
    assert draws("gamma", per_channel=False)[1]["exponent"].shape[1] == 1
    below, above = draws("contrast", factor=[0.5, 0.8])[1]["factor"], draws("contrast", factor=[1.2, 2])[1]["factor"]
    assert below.min() >= 0.5 and below.max() <= 0.8 and above.min() >= 1.2 and above.max() <= 2
    assert below.mean() == pytest.approx(0.65, abs=0.02) and above.mean() == pytest.approx(1.6, abs=0.04)

    sigma = draws("blur", prob=1.0, sigma=[0.5, 1.0], channel_prob=0.3)[1]["sigma"]
    blurred = (sigma > 0).all(axis=2)
    assert blurred.mean() == pytest.approx(0.3, abs=0.03) and (sigma[~blurred] == 0).all()
    assert sigma[blurred].min() >= 0.5 and sigma[blurred].max() <= 1 and sigma[blurred].std(axis=1).min() > 0
    equal = draws("blur", per_axis=False)[1]["sigma"]
    assert (equal[..., 0] == equal[..., 2]).all()

    zoom = draws("low_resolution", prob=1.0, zoom=[0.5, 0.9], channel_prob=0.5)[1]["zoom"]
    lowered = zoom[..., 0] < 1
    assert lowered.mean() == pytest.approx(0.5, abs=0.03) and (zoom[..., 0] == zoom[..., 1]).all()
    assert zoom[lowered].min() >= 0.5 and zoom[lowered].max() <= 0.9

    edge = draws("cutout", prob=1.0, boxes=4, size=[0.1, 0.3])[1]["edge"]
    used = edge.any(axis=2).sum(axis=1)
    assert np.bincount(used, minlength=5) / len(used) == pytest.approx([0, 0.25, 0.25, 0.25, 0.25], abs=0.03)
    assert edge[edge > 0].min() >= 0.1 and edge.max() <= 0.3


def test_orders_and_purposes_differ() -> None:
    everything = AugmentConfig.model_validate({name: {} for name in NAMES})
    assert list(everything.intensities) == [
        *("scale_intensity", "shift_intensity", "noise", "blur", "contrast", "low_resolution"),
        *("gamma_inverted", "gamma", "cutout"),
    ]
    sections: list[IntensitySection] = list(everything.intensities.values())
    assert len({section.order for section in sections}) == len(NAMES)
    purposes = [one.purpose for one in open_augmentations(everything, ImageLayout())]
    assert len(set(purposes)) == len(NAMES)
    assert all(purpose < 64 or FIRST_NAMED_PURPOSE <= purpose < FIRST_OUTSIDE_PURPOSE for purpose in purposes)


GOLDEN = {
    "blur": ("sigma", [0.0, 0.0, 0.0, 0.0]),
    "contrast": ("factor", [0.8389168864865356, 0.8270566254430572]),
    "low_resolution": ("zoom", [1.0, 1.0, 1.0, 1.0]),
    "gamma_inverted": ("exponent", [1.3750782886074608, 1.1400729301121366]),
    "gamma": ("exponent", [0.7607912392914806, 0.8697808603219397]),
    "cutout": ("place", [0.09552928364358426, 0.7934949501746099, 0.3864981054958282, 0.5060618633346752]),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_numbers_of_a_published_run_stay(name: str) -> None:
    key, expected = GOLDEN[name]
    drawn = opened(name, prob=1.0).draw(5, 123, [1]).values[key]
    assert drawn.ravel()[:4].tolist() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"gamma": {"exponent": [1.5, 0.7]}}, "expected two positive numbers, the lower one first, got [1.5, 0.7]"),
        ({"blur": {"sigma": [0, 1]}}, "expected two positive numbers"),
        ({"low_resolution": {"up": "spline"}}, "linear"),
        ({"low_resolution": {"zoom": [0.5, 1.5]}}, "expected shares of the patch, at most 1, got [0.5, 1.5]"),
        ({"cutout": {"size": [1, 2]}}, "expected shares of the patch"),
        ({"cutout": {"boxes": 0}}, "greater than or equal to 1"),
    ],
)
def test_wrong_values_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        AugmentConfig.model_validate(keys)
    assert message in str(refusal.value)
