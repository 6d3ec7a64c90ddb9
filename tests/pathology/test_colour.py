"""Colour jitter against the formulas of Python's colorsys, sample by sample."""

from __future__ import annotations

import colorsys
from itertools import permutations

import numpy as np
import pytest
import torch

from fusionseg.data.loading.augmentation_protocol import Drawn
from fusionseg.pathology.colour import ColourJitter

NEUTRAL = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
LUMA = np.array([0.299, 0.587, 0.114])


def jitter(image: np.ndarray, order: tuple[int, ...] = (0, 1, 2, 3), **values: float) -> np.ndarray:
    """Apply the changes to images (B, 3, X, Y, 1), all in one order."""
    count = len(image)
    drawn = {name: np.full(count, value, np.float32) for name, value in {**NEUTRAL, **values}.items()}
    drawn["order"] = np.array([order] * count)
    tensor = torch.from_numpy(image)
    label = torch.zeros(count, 1, *image.shape[2:], dtype=torch.int64)
    return ColourJitter().apply(tensor, label, Drawn(drawn, torch.from_numpy))[0].numpy()


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).random((2, 3, 5, 4, 1), np.float32)


def test_neutral_numbers_change_nothing(image: np.ndarray) -> None:
    assert np.allclose(jitter(image), image, atol=1e-6)


def test_brightness_contrast_and_saturation(image: np.ndarray) -> None:
    assert np.allclose(jitter(image, brightness=0.7), image * 0.7, atol=1e-6)
    grey = np.tensordot(LUMA, image, axes=(0, 1))[:, None]
    mean = grey.mean(axis=(1, 2, 3, 4), keepdims=True)
    assert np.allclose(jitter(image, contrast=0.4), 0.4 * image + 0.6 * mean, atol=1e-6)
    assert np.allclose(jitter(image, saturation=1.2), (1.2 * image - 0.2 * grey).clip(0, 1), atol=1e-6)


@pytest.mark.parametrize("turn", [-0.5, -0.04, 0.2])
def test_hue_is_that_of_colorsys(image: np.ndarray, turn: float) -> None:
    image[0, :, 0, 0] = 0.5  # a grey pixel has no hue
    found = jitter(image, hue=turn)
    for sample, x, y in np.ndindex(2, 5, 4):
        h, s, v = colorsys.rgb_to_hsv(*image[sample, :, x, y, 0].tolist())
        assert np.allclose(found[sample, :, x, y, 0], colorsys.hsv_to_rgb((h + turn) % 1, s, v), atol=1e-5)


def test_each_sample_has_its_own_order(image: np.ndarray) -> None:
    """The result in one batch of all orders is that of each sample alone."""
    orders = list(permutations(range(4)))
    values = {"brightness": 1.2, "contrast": 0.5, "saturation": 0.8, "hue": 0.1}
    drawn = {name: np.full(len(orders), value, np.float32) for name, value in values.items()}
    batch = torch.from_numpy(np.repeat(image[:1], len(orders), axis=0))
    label = torch.zeros(len(orders), 1, 5, 4, 1, dtype=torch.int64)
    before = batch.clone()
    found, _ = ColourJitter().apply(batch, label, Drawn({**drawn, "order": np.array(orders)}, torch.from_numpy))
    alone = np.concatenate([jitter(image[:1], order, **values) for order in orders])
    assert np.allclose(found.numpy(), alone, atol=1e-6) and torch.equal(batch, before)
    assert len({values.tobytes() for values in alone.round(5)}) > 6  # the order matters


def test_draws_stay_in_the_ranges() -> None:
    part = ColourJitter(brightness=0.2, contrast=0.3, saturation=0.0, hue=0.1)
    drawn = [part.draw(np.random.default_rng(seed)) for seed in range(200)]
    for name, low, high in (("brightness", 0.8, 1.2), ("contrast", 0.7, 1.3), ("hue", -0.1, 0.1)):
        values = [one[name] for one in drawn]
        assert low <= min(values) < low + 0.05 and high - 0.05 < max(values) <= high
    assert {one["saturation"] for one in drawn} == {1.0}
    assert len({tuple(one["order"]) for one in drawn}) == 24


@pytest.mark.parametrize("wrong", [{"brightness": -0.1}, {"contrast": 1.5}, {"hue": 0.6}])
def test_sizes_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ColourJitter(**wrong)


def test_images_of_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="1 channels"):
        ColourJitter().apply(torch.zeros(1, 1, 2, 2, 1), torch.zeros(1, 1, 2, 2, 1), Drawn({}, torch.from_numpy))
