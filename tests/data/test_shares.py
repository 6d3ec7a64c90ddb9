"""Cases divided over the ranks: what the shares promise, and that the samples are those of a cache of all cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from partial_caches import CPU, TRAINING_CASES, batch, cases_of, prepare_seven, voxels_of

from fusionseg.config import CacheConfig, RunConfig, validate
from fusionseg.data.loading.caches.partial_cache import ShareCache
from fusionseg.data.loading.device_cache import DeviceCache
from fusionseg.data.loading.sampling.case_shares import CaseShares
from fusionseg.data.loading.sampling.weights import EVEN, SamplingWeights
from fusionseg.data.preprocessing.store import Store
from fusionseg.inference.evaluation.validation import with_all_cases
from fusionseg.training.opened_data.draws import open_draws
from fusionseg.utils.errors import UserError

SIZES = [50, 10, 20, 80, 30, 30, 90, 10, 60, 40, 70, 20]


def shares_of(sizes: list[int] = SIZES, **keys: Any) -> CaseShares:
    given = {"ranks": 3, "micro_batch": 1, "global_batch": 6, "samples_per_volume": 1, "epochs": 2, **keys}
    return CaseShares(7, sizes, **given)


def rank_of(k: int, shares: CaseShares) -> int:
    return k // shares.micro_batch % shares.ranks


@pytest.mark.parametrize("count", [12, 11, 10, 3])
def test_each_case_is_in_one_share_of_about_equal_bytes(count: int) -> None:
    shares = shares_of(SIZES[:count])
    seen = set()
    for period in range(50):
        parts = [shares.share(period, rank).tolist() for rank in range(3)]
        assert sorted(case for part in parts for case in part) == list(range(count))
        assert max(map(len, parts)) - min(map(len, parts)) <= (1 if count % 3 else 0)
        bytes_of = [sum(SIZES[case] for case in part) for part in parts]
        assert max(bytes_of) <= shares.capacity
        assert count % 3 or max(bytes_of) - min(bytes_of) <= max(SIZES)
        seen.add(tuple(map(tuple, parts)))
    assert len(seen) >= 6 and shares.capacity < sum(SIZES[:count])


@pytest.mark.parametrize(("micro_batch", "samples_per_volume"), [(1, 1), (2, 1), (1, 2)])
def test_with_even_shares_an_epoch_has_every_case_once(micro_batch: int, samples_per_volume: int) -> None:
    shares = shares_of(micro_batch=micro_batch, samples_per_volume=samples_per_volume)
    steps = 2 * samples_per_volume  # of an epoch: 12 cases, 6 samples a step
    assert shares.steps == 2 * steps
    for epoch in range(6):
        drawn: Counter[int] = Counter()
        for step in range(epoch * steps, (epoch + 1) * steps):
            for k in range(6):
                case = shares.case_of(step, k)
                assert case in shares.share(shares.period(step), rank_of(k, shares))
                drawn[case] += 1
        assert drawn == dict.fromkeys(range(12), samples_per_volume)


@pytest.mark.parametrize("count", [12, 11, 10])
def test_over_many_periods_all_cases_are_drawn_equally_often(count: int) -> None:
    """Uneven shares too, and a period that ends within an epoch of a share."""
    shares = shares_of(SIZES[:count], epochs=1)
    steps = 6000
    drawn = Counter(shares.case_of(step, k) for step in range(steps) for k in range(6))
    expected = steps * 6 / count
    assert [drawn[case] for case in range(count)] == pytest.approx([expected] * count, rel=0.03)


def test_the_case_of_a_sample_depends_on_nothing_before() -> None:
    one, other = shares_of(), shares_of()
    places = [(step, k) for step in range(40) for k in range(6)]
    forwards = {place: one.case_of(*place) for place in places}
    assert {place: other.case_of(*place) for place in reversed(places)} == forwards
    assert {place: shares_of(ranks=2).case_of(*place) for place in places} != forwards


@pytest.fixture(scope="module")
def store(tmp_path_factory: Any, make_dataset: Any, tiny_config: Callable[..., RunConfig]) -> Store:
    return prepare_seven(tmp_path_factory.mktemp("shares"), make_dataset, tiny_config)


@pytest.mark.parametrize("batched", [False, True])
def test_a_rank_makes_its_samples_from_its_share(store: Store, batched: bool) -> None:
    """Those of a cache of all cases, also on the way of a GPU, and after a jump to any step."""
    cases = cases_of(store)
    draws = CaseShares(
        1, voxels_of(cases[:TRAINING_CASES]), ranks=2, micro_batch=1, global_batch=4, samples_per_volume=1, epochs=2
    )
    everything = DeviceCache(cases, CacheConfig(), CPU)
    for rank in range(2):
        cache = ShareCache(cases, CacheConfig(), CPU, draws, rank)
        for step in (0, 1, 4, 7, 2):
            cache.advance(step)
            for indices in (range(rank, rank + 1), range(2 + rank, 3 + rank)):
                ours = batch(cache, draws, step, indices, batched=batched)
                theirs = batch(everything, draws, step, indices, batched=batched)
                assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
            assert (cache.first_voxel >= 0).sum() == 3
        for index in range(7):
            assert all(map(torch.equal, cache.volume(index), everything.volume(index)))
        assert cache.image.shape[1] < everything.image.shape[1]
        cache.close()


def test_a_sample_of_another_share_is_no_silent_mistake(store: Store) -> None:
    cases = cases_of(store)
    draws = CaseShares(1, voxels_of(cases), ranks=7, micro_batch=1, global_batch=7, samples_per_volume=1, epochs=1)
    cache = ShareCache(cases, CacheConfig(), CPU, draws, 0)
    cache.advance(0)
    with pytest.raises(AssertionError, match="not in memory"):
        cache.first_voxels(np.arange(7))


def test_what_does_not_fit_is_refused(store: Store) -> None:
    config = validate({"model": {"name": "unet"}, "cache": {"placement": "sharded"}})
    records = list(store.cases.values())
    assert open_draws(config, 7, records, EVEN) is not None
    with pytest.raises(UserError, match=r"cache\.placement: .*at least 8, got 7.*start fewer ranks"):
        open_draws(config, 8, records, EVEN)
    with pytest.raises(UserError, match=r"cache\.placement: .*have weights .*remove the weights"):
        open_draws(config, 2, records, replace(EVEN, cases=(1.0, 2.0)))
    assert open_draws(validate({"model": {"name": "unet"}}), 8, records, SamplingWeights(cases=(1.0, 2.0))) is None
    with pytest.raises(UserError, match=r"cache\.device: is disk, but placement: sharded"):
        validate({"model": {"name": "unet"}, "cache": {"placement": "sharded", "device": "disk"}})


def test_an_evaluation_on_one_device_holds_no_share() -> None:
    config = validate({"model": {"name": "unet"}, "cache": {"placement": "sharded", "device": "accelerator"}})
    cache = with_all_cases(config).cache
    assert (cache.placement, cache.device) == ("replicated", "auto")
    other = validate({"model": {"name": "unet"}, "cache": {"device": "host"}})
    assert with_all_cases(other) is other
