"""Pairs of masks for tests of metrics: random shapes, and the odd cases at which implementations differ."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Mask = NDArray[np.bool_]

SHAPE = (15, 12, 10)
SPACINGS = [(1.0, 1.0, 1.0), (0.7, 0.7, 3.0), (0.33, 1.1, 2.05)]


def blobs(seed: int, shape: tuple[int, int, int] = SHAPE, *, share: float = 0.3) -> Mask:
    """A random mask of smooth shapes, several of which touch the border."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.2, mode="wrap")
    return np.asarray(noise > np.quantile(noise, 1 - share))


def _box(*sides: tuple[int, int]) -> Mask:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


def mask_pairs() -> Iterator[tuple[str, Mask, Mask]]:
    """Yield (name, predicted, true) of each pair."""
    empty, full = np.zeros(SHAPE, bool), np.ones(SHAPE, bool)
    voxel, corner, other_corner = (
        _box((4, 5), (5, 6), (6, 7)),
        _box((0, 1), (0, 1), (0, 1)),
        _box((14, 15), (11, 12), (9, 10)),
    )
    plate, at_border = _box((0, 15), (3, 4), (0, 10)), _box((0, 6), (0, 12), (4, 10))
    for seed in range(6):
        yield f"random{seed}", blobs(seed), blobs(seed) ^ (blobs(seed + 50, share=0.1))
    yield "unrelated", blobs(1), blobs(2)
    yield "speckle", np.random.default_rng(0).random(SHAPE) < 0.05, np.random.default_rng(1).random(SHAPE) < 0.1
    yield "equal", blobs(3), blobs(3)
    yield "both_empty", empty, empty
    yield "not_predicted", empty, blobs(4)
    yield "not_there", blobs(4), empty
    yield "one_voxel", voxel, voxel
    yield "one_voxel_against_shape", voxel, blobs(5)
    yield "one_voxel_in_the_corner", corner, other_corner
    yield "corner_against_shape", blobs(5), corner
    yield "full", full, blobs(5)
    yield "both_full", full, full
    yield "full_against_voxel", full, voxel
    yield "plate", plate, np.roll(plate, 2, axis=1)
    yield "at_the_border", at_border, _box((0, 5), (2, 12), (0, 10))
    yield "hollow", at_border & ~_box((2, 4), (4, 8), (6, 8)), at_border
    yield "checkerboard", np.indices(SHAPE).sum(axis=0) % 2 == 0, np.indices(SHAPE).sum(axis=0) % 2 == 1
