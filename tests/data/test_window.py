"""A window of cases that moves on: what it promises, and that the samples are those of a cache of all cases."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from math import gcd
from typing import Any

import numpy as np
import pytest
import torch
from partial_caches import CPU, TRAINING_CASES, batch, cases_of, prepare_seven, voxels_of

from fusionseg.config import CacheConfig, RunConfig, validate
from fusionseg.data.loading.caches.window_cache import WindowCache
from fusionseg.data.loading.device_cache import DeviceCache
from fusionseg.data.loading.sampling.case_window import CaseWindow
from fusionseg.data.loading.sampling.weights import EVEN, SamplingWeights
from fusionseg.data.preprocessing.store import Store
from fusionseg.training.opened_data.draws import open_draws
from fusionseg.utils.errors import UserError


def window_of(count: int, seed: int = 2, **keys: Any) -> CaseWindow:
    sizes = np.random.default_rng(seed).integers(1, 100, count).tolist()
    given = {"window": 0.4, "replaced": 0.5, "global_batch": 2, "samples_per_volume": 1, **keys}
    return CaseWindow(seed, sizes, **given)


@pytest.mark.parametrize(
    ("count", "window", "replaced", "size", "moved"),
    [(10, 0.4, 0.5, 4, 2), (10, 0.3, 0.1, 3, 1), (10, 0.99, 1.0, 9, 1), (2, 0.1, 1.0, 1, 1), (1, 0.5, 0.5, 1, 0)],
)
def test_the_window_moves_on(count: int, window: float, replaced: float, size: int, moved: int) -> None:
    found = window_of(count, window=window, replaced=replaced)
    assert (found.size, found.replaced) == (size, moved)
    for rotation in range(30):
        cases, later = found.cases(rotation).tolist(), found.cases(rotation + 1).tolist()
        assert len(set(cases)) == size
        assert later[: size - moved] == cases[moved:]
        assert moved == 0 or not set(later[size - moved :]) & set(cases)


@pytest.mark.parametrize(("count", "global_batch"), [(10, 2), (10, 3), (7, 4)])
def test_all_cases_are_drawn_equally_often(count: int, global_batch: int) -> None:
    window = window_of(count, global_batch=global_batch)
    turns = count // gcd(count, window.replaced)  # rotations until the window is the first one again
    held = Counter(case for rotation in range(turns) for case in window.cases(rotation).tolist())
    assert held == dict.fromkeys(range(count), turns * window.size // count)
    steps = window.steps * turns * 400
    drawn = Counter(window.case_of(step, k) for step in range(steps) for k in range(global_batch))
    expected = steps * global_batch / count
    # A rotation whose samples are no multiple of the window draws some of its cases once more, at random.
    exact = window.steps * global_batch % window.size == 0
    assert [drawn[case] for case in range(count)] == pytest.approx([expected] * count, rel=0 if exact else 0.03)


def test_each_case_of_the_window_is_drawn_in_a_rotation() -> None:
    window = window_of(10, samples_per_volume=3)
    for rotation in range(20):
        steps = range(rotation * window.steps, (rotation + 1) * window.steps)
        assert {window.case_of(step, k) for step in steps for k in range(2)} == set(window.cases(rotation).tolist())


@pytest.fixture(scope="module")
def store(tmp_path_factory: Any, make_dataset: Any, tiny_config: Callable[..., RunConfig]) -> Store:
    return prepare_seven(tmp_path_factory.mktemp("window"), make_dataset, tiny_config)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(("fraction", "replaced"), [(0.5, 0.3), (0.5, 1.0), (0.8, 0.5)])
def test_its_samples_are_those_of_a_cache_of_all_cases(
    store: Store, batched: bool, fraction: float, replaced: float
) -> None:
    """From step to step for several times around the ring, and after jumps, as when a run is resumed."""
    cases = cases_of(store)
    sizes = voxels_of(cases[:TRAINING_CASES])
    window = CaseWindow(1, sizes, window=fraction, replaced=replaced, global_batch=2, samples_per_volume=1)
    everything, cache = DeviceCache(cases, CacheConfig(), CPU), WindowCache(cases, CacheConfig(), CPU, window)
    for step in (*range(12 * window.steps), 100, 101, 3, 4, 5, 6):
        cache.advance(step)
        ours = batch(cache, window, step, range(2), batched=batched)
        theirs = batch(everything, window, step, range(2), batched=batched)
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
        assert (cache.first_voxel >= 0).sum() == window.size
    for index in range(7):
        assert all(map(torch.equal, cache.volume(index), everything.volume(index)))
    cache.close()


def test_the_ring_holds_cases_of_any_sizes(store: Store) -> None:
    """The places of cases that are in memory or enter never overlap, and all lie within the capacity."""
    for seed in range(40):
        count = 5 + seed % 9
        window = window_of(count, seed, window=0.2 + seed % 4 / 5, replaced=(1 + seed % 3) / 3)
        cache = WindowCache([(store, "case_000")] * count, CacheConfig(), CPU, window)
        cache._voxels = lambda case, sizes=window._voxels: int(sizes[case])  # type: ignore[method-assign]
        cache._bring = lambda *_: None  # type: ignore[method-assign]
        cache._fill = lambda held, cache=cache: fill(cache, held)  # type: ignore[method-assign]
        for rotation in range(3 * count):
            cache.advance(rotation * window.steps)
            places = {case: int(first) for case, first in enumerate(cache.first_voxel) if first >= 0}
            places |= {one.case_index: one.position for one in cache._entering}
            taken = sorted((first, first + cache._voxels(case)) for case, first in places.items())
            assert len(taken) == window.size + window.replaced
            assert taken[0][0] >= cache._begin and taken[-1][1] <= cache.image.shape[1]
            assert all(one[1] <= other[0] for one, other in itertools.pairwise(taken))
        cache.close()


def fill(cache: WindowCache, held: list[int]) -> int:
    position = cache._begin
    for case in held:
        cache.first_voxel[case] = position
        position += cache._voxels(case)
    return position


def test_an_error_in_the_background_reaches_the_training(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = cases_of(store)
    window = CaseWindow(1, [10**5] * 7, window=0.5, replaced=0.5, global_batch=2, samples_per_volume=1)
    cache = WindowCache(cases, CacheConfig(), CPU, window)

    def damaged(_: int) -> Any:
        raise UserError("damaged")

    def bring(case_index: int, *_: Any) -> None:
        damaged(case_index)

    monkeypatch.setattr(cache, "_bring", bring)
    cache.advance(0)
    with pytest.raises(UserError, match="damaged"):
        cache.advance(window.steps)
    cache.close()


def test_settings(store: Store) -> None:
    cache = {"placement": "rotating", "window_fraction": 0.5, "replace_fraction": 0.3}
    config, records = validate({"model": {"name": "unet"}, "cache": cache}), list(store.cases.values())
    window = open_draws(config, 8, records, EVEN)
    assert isinstance(window, CaseWindow) and (window.size, window.replaced) == (4, 1)
    with pytest.raises(UserError, match=r"cache\.placement: rotating .*have weights"):
        open_draws(config, 1, records, SamplingWeights(cases=(1.0, 2.0)))
