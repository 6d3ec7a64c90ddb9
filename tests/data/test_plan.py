"""The sample plan: a pure function of (seed, step, k), and what it promises of every sample."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from fusionseg.config import AugmentConfig
from fusionseg.data.loading.counter_random import generator, random_bits, uniform
from fusionseg.data.loading.purposes import Purpose
from fusionseg.data.loading.sampling.patch_centres import PlanCase
from fusionseg.data.loading.sampling_plan import SamplePlan, Samples

ALL: dict[str, Any] = {
    "flip": 0.5,
    "shift_intensity": {"prob": 0.5, "offset": 0.1},
    "scale_intensity": {"prob": 0.5, "factor": 0.2},
    "noise": {"prob": 0.3, "std": 0.05},
    "rotate": {"prob": 0.4, "degrees": 20},
    "scale": {"prob": 0.4, "factor": 0.3},
    "elastic": {"prob": 0.2, "magnitude": 2.0},
}
OF_PART = {
    "flip": {"flip"},
    "shift_intensity": {"shift"},
    "scale_intensity": {"scale"},
    "noise": {"noise_std", "noise_key"},
    "rotate": {"angles"},
    "scale": {"zoom"},
    "elastic": {"elastic", "elastic_key"},
}
"""The values of a sample that each augmentation decides."""
DRAWN = {
    "shift": ("augment.shift_intensity", "offset", 0.0),
    "scale": ("augment.scale_intensity", "factor", 1.0),
    "noise_std": ("augment.noise", "std", 0.0),
    "noise_key": ("augment.noise", "key", 0),
}
"""Values among `Samples.draws`: the augmentation, the name, and the value of a sample that is not changed."""


def case(name: str, shape: tuple[int, int, int] = (40, 36, 30), classes: int = 2) -> PlanCase:
    """A case whose class k fills the k-th of as many slabs along the first axis but for a margin."""
    label = np.zeros(shape, np.uint8)
    edges = np.linspace(2, shape[0] - 2, classes + 1).astype(int)
    for value in range(classes):
        label[edges[value] : edges[value + 1], 2 : 4 + 3 * value, 3:-3] = value + 1
    parts = [np.flatnonzero(label.ravel() == value + 1) for value in range(classes)]
    offsets = np.cumsum([0, *map(len, parts)])
    return PlanCase(name, shape, np.concatenate([np.zeros(0, np.int64), *parts]), tuple(int(v) for v in offsets))


CASES = [
    case("a"),
    case("b", (20, 50, 33)),
    case("c", (64, 21, 40), 3),
    case("d", (33, 33, 33), 0),
    case("e"),
]


def plan(augment: dict[str, Any] | None = None, cases: list[PlanCase] = CASES, **changes: Any) -> SamplePlan:
    settings: dict[str, Any] = {
        "seed": 5,
        "patch": (16, 16, 16),
        "global_batch": 4,
        "samples_per_volume": 2,
        "foreground": 0.5,
        "channels": 1,
        **changes,
    }
    return SamplePlan(cases, AugmentConfig.model_validate(ALL if augment is None else augment), **settings)


def values(samples: Samples) -> dict[str, np.ndarray[Any, Any]]:
    """Every value of the samples, (B, ...), those of the augmentations among them."""
    found = {field.name: getattr(samples, field.name) for field in fields(samples)}
    del found["step"], found["draws"]
    for name, (key, drawn, neutral) in DRAWN.items():
        found[name] = np.full(len(samples.sample), neutral)
        if key in samples.draws and drawn in samples.draws[key].values:
            found[name][samples.draws[key].hit] = samples.draws[key].values[drawn]
    return found


def rows(samples: Samples, i: int) -> dict[str, list[Any]]:
    return {name: array[i].tolist() for name, array in values(samples).items()}


def many(chosen: SamplePlan, steps: int) -> dict[str, np.ndarray[Any, Any]]:
    """Every value of all samples of the first `steps`, laid one after the other."""
    parts = [values(chosen.samples(step, range(chosen.global_batch))) for step in range(steps)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_a_sample_is_the_same_whatever_is_asked_for_before_and_with_it() -> None:
    whole = [plan().samples(step, range(4)) for step in range(40)]
    one = plan()
    for step in (39, 0, 17, 38, 17):
        for k in (3, 0, 2):
            assert rows(one.samples(step, [k]), 0) == rows(whole[step], k)
    mixed = plan().samples(12, [2, 0, 3])
    assert mixed.step == 12 and mixed.sample.tolist() == [2, 0, 3]
    assert [rows(mixed, i) for i in range(3)] == [rows(whole[12], k) for k in (2, 0, 3)]


@pytest.mark.parametrize("changed", ["seed", "step", "sample"])
def test_seeds_steps_and_samples_differ(changed: str) -> None:
    settings = {"foreground": 0.0, "cases": [case("one", (200, 200, 200))]}
    first = rows(plan(ALWAYS, **settings).samples(3, [1]), 0)
    seed, step, k = 5 + (changed == "seed"), 3 + (changed == "step"), 1 + (changed == "sample")
    other = rows(plan(ALWAYS, seed=seed, **settings).samples(step, [k]), 0)
    for name in ("origin", "shift", "scale", "noise_std", "noise_key", "angles", "zoom", "elastic_key"):
        assert first[name] != other[name], name


def test_purposes_and_places_have_numbers_of_their_own() -> None:
    words = [
        int(random_bits(seed, step, k, purpose, 1)[0])
        for seed in (0, 1)
        for step in (0, 1, 2)
        for k in (0, 1, 2)
        for purpose in Purpose
    ]
    assert len(set(words)) == len(words)
    numbers = uniform(1, 2, 3, Purpose.CENTRE, 20000)
    assert 0 <= numbers.min() < 0.001 and 0.999 < numbers.max() < 1
    assert numbers.mean() == pytest.approx(0.5, abs=0.01) and numbers.std() == pytest.approx(12**-0.5, abs=0.01)
    np.testing.assert_array_equal(numbers[:7], uniform(1, 2, 3, Purpose.CENTRE, 7))
    np.testing.assert_array_equal(numbers, generator(1, 2, 3, Purpose.CENTRE).random(20000))
    for count in (1, 3, 4, 5):  # whatever was drawn before, and whatever is left in a buffer
        fresh = np.random.Philox(key=[9, 0], counter=[0, Purpose.FLIP, count, 7]).random_raw(count)
        np.testing.assert_array_equal(random_bits(9, 7, count, Purpose.FLIP, count), fresh)


@pytest.mark.parametrize(("global_batch", "samples_per_volume"), [(4, 2), (3, 2), (2, 1), (1, 3), (5, 4)])
def test_every_epoch_visits_every_case_once(global_batch: int, samples_per_volume: int) -> None:
    chosen = plan(global_batch=global_batch, samples_per_volume=samples_per_volume)
    stream = [chosen.case_of(step, k) for step in range(60) for k in range(global_batch)]
    volumes = [stream[i : i + samples_per_volume] for i in range(0, len(stream), samples_per_volume)]
    assert all(len(set(volume)) == 1 for volume in volumes)  # consecutive samples share their case
    visits = [volume[0] for volume in volumes if len(volume) == samples_per_volume]
    epochs = [visits[i : i + 5] for i in range(0, len(visits) - 4, 5)]
    assert len(epochs) > 1
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    if len(epochs) > 4:
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_orders_are_drawn_evenly() -> None:
    chosen = plan(global_batch=1, samples_per_volume=1, cases=CASES[:3])
    orders = Counter(tuple(chosen.case_of(3 * epoch + i, 0) for i in range(3)) for epoch in range(1200))
    assert len(orders) == 6 and min(orders.values()) > 150  # 200 each


@pytest.mark.parametrize("foreground", [0.0, 0.5, 1.0])
def test_patches_lie_in_the_volume_and_small_volumes_in_the_patch(foreground: float) -> None:
    patch = (32, 24, 32)  # larger than some of the cases along some axes
    drawn = many(plan(foreground=foreground, patch=patch), 150)
    for number, origin in zip(drawn["case_index"], drawn["origin"], strict=True):
        for first, size, side in zip(origin, CASES[number].shape, patch, strict=True):
            assert (0 <= first <= size - side) if size >= side else (size - side <= first <= 0)


def test_random_origins_reach_everywhere() -> None:
    one = plan(foreground=0.0, patch=(16, 16, 32), cases=[case("a", (20, 16, 30))])
    drawn = many(one, 200)["origin"]
    counts = [Counter(drawn[:, axis].tolist()) for axis in range(3)]
    assert [sorted(count) for count in counts] == [[0, 1, 2, 3, 4], [0], [-2, -1, 0]]
    assert min(counts[0].values()) > 110 and min(counts[2].values()) > 200  # 160 and 267 expected of 800


def test_foreground_patches_hold_foreground_and_classes_are_drawn_evenly() -> None:
    patch = np.array((9, 10, 11))
    chosen = plan(foreground=1.0, patch=tuple(patch.tolist()))
    drawn = many(chosen, 500)
    hits: Counter[int] = Counter()
    for number, origin in zip(drawn["case_index"], drawn["origin"], strict=True):
        index = CASES[number]
        if len(index.class_offsets) == 1:
            continue
        voxels = np.stack(np.unravel_index(index.foreground, index.shape), axis=1)
        inside = ((voxels >= origin) & (voxels < origin + patch)).all(axis=1)
        assert inside.any()
    # Where no clipping at the border hides it, the centre says which class was drawn.
    index = case("wide", (90, 40, 40), 3)
    label = np.zeros(90 * 40 * 40, np.uint8)
    for value, (first, last) in enumerate(zip(index.class_offsets, index.class_offsets[1:], strict=False)):
        label[index.foreground[first:last]] = value + 1
    small = plan(foreground=1.0, patch=(3, 3, 3), cases=[index])
    for origin in many(small, 300)["origin"]:
        hits[int(label.reshape(index.shape)[tuple(origin + 1)])] += 1
    sizes = np.diff(index.class_offsets)
    assert sizes.max() > 3 * sizes.min()  # so evenly is not by size
    assert set(hits) == {1, 2, 3} and all(340 < count < 460 for count in hits.values())  # 400 each


def test_the_share_of_foreground_patches() -> None:
    index = PlanCase("point", (101, 101, 101), np.array([50 * 101 * 101 + 50 * 101 + 50]), (0, 1))
    drawn = many(plan(foreground=0.3, patch=(5, 5, 5), cases=[index]), 500)["origin"]
    assert (drawn == 48).all(axis=1).mean() == pytest.approx(0.3, abs=0.035)


@pytest.mark.parametrize("name", sorted(OF_PART))
def test_switching_one_augmentation_on_changes_nothing_else(name: str) -> None:
    others = {key: value for key, value in ALL.items() if key != name}
    off = others | ({"flip": 0.0} if name == "flip" else {})
    with_it, without = many(plan(ALL), 60), many(plan(off), 60)
    for field, drawn in with_it.items():
        if field in OF_PART[name]:
            assert not np.array_equal(drawn, without[field]), field
        else:
            np.testing.assert_array_equal(drawn, without[field], err_msg=field)


def test_nothing_is_changed_without_augmentation() -> None:
    drawn = many(plan({"flip": 0.0}), 30)
    neutral = {"flip": 0, "shift": 0, "scale": 1, "noise_std": 0, "angles": 0, "zoom": 1, "elastic": 0}
    for name, value in neutral.items():
        assert (drawn[name] == value).all(), name
    assert not plan({"flip": 1.0}).samples(0, range(4)).warped.any()


def test_warped_names_the_interpolated_patches() -> None:
    samples = plan().samples(2, range(4))
    for step in range(20):
        samples = plan().samples(step, range(4))
        expected = samples.angles.any(axis=1) | (samples.zoom[:, 0] != 1) | (samples.elastic != 0)
        np.testing.assert_array_equal(samples.warped, expected)


def test_probabilities_and_ranges_hold() -> None:
    drawn = many(plan(global_batch=10), 600)  # 6000 samples: 0.026 is four standard deviations of a share
    assert drawn["flip"].mean(axis=0) == pytest.approx([0.5] * 3, abs=0.026)
    assert np.corrcoef(drawn["flip"].T)[np.triu_indices(3, 1)] == pytest.approx([0, 0, 0], abs=0.05)

    def check(values: Any, neutral: float, prob: float, low: float, high: float) -> None:
        hit = values[values != neutral]
        assert len(hit) / len(values) == pytest.approx(prob, abs=0.026)
        span = high - low
        assert low <= hit.min() < low + 0.02 * span and high - 0.02 * span < hit.max() <= high
        assert hit.mean() == pytest.approx((low + high) / 2, abs=0.03 * span)
        assert hit.std() == pytest.approx(span / 12**0.5, rel=0.05)

    check(drawn["shift"], 0, 0.5, -0.1, 0.1)
    check(drawn["scale"], 1, 0.5, 0.8, 1.2)
    check(drawn["noise_std"], 0, 0.3, 0, 0.05)
    assert (drawn["zoom"] == drawn["zoom"][:, :1]).all()
    check(drawn["zoom"][:, 0], 1, 0.4, 0.7, 1.3)
    for axis in range(3):
        check(drawn["angles"][:, axis], 0, 0.4, -np.deg2rad(20), np.deg2rad(20))
    assert set(drawn["elastic"].tolist()) == {0.0, 2.0}
    assert (drawn["elastic"] != 0).mean() == pytest.approx(0.2, abs=0.026)
    for name, count in (("noise_key", (drawn["noise_std"] != 0).sum()), ("elastic_key", 6000)):
        assert (drawn[name] >= 0).all() and (drawn[name] < 2**32).all()
        assert len(np.unique(drawn[name])) > count - 10


def test_network_seeds() -> None:
    seeds = {plan().network_seed(step, k) for step in range(20) for k in range(4)}
    assert len(seeds) == 80 and all(0 <= seed < 2**63 for seed in seeds)
    assert plan(seed=6).network_seed(0, 0) != plan().network_seed(0, 0) == plan().network_seed(0, 0)


ALWAYS = {**ALL, **{name: {**value, "prob": 1.0} for name, value in ALL.items() if isinstance(value, dict)}}
GOLDEN = {
    (1, 2): {
        "sample": 2,
        "case_index": 1,
        "origin": [2, 17, 3],
        "flip": [True, False, False],
        "shift": -0.06449165588958501,
        "scale": 1.1270525170280534,
        "noise_std": 0.038035173284414886,
        "angles": [-0.01612720113056465, 0.18669537088549426, 0.08043047339514342],
        "zoom": [1.1590671182118297] * 3,
        "elastic": 2.0,
        "noise_key": 131671962,
        "elastic_key": 2464332325,
        "quarter_turns": [0, 0, 0],
        "shear": [0.0] * 6,
    },
    (123456, 3): {
        "sample": 3,
        "case_index": 1,
        "origin": [1, 21, 11],
        "flip": [True, False, True],
        "shift": 0.0012396423535607328,
        "scale": 0.9709525256874987,
        "noise_std": 0.0035237273028631334,
        "angles": [0.08957195941687811, -0.05925374724825747, 0.2404086621005722],
        "zoom": [0.9522797782868805] * 3,
        "elastic": 2.0,
        "noise_key": 2454806005,
        "elastic_key": 2478047650,
        "quarter_turns": [0, 0, 0],
        "shear": [0.0] * 6,
    },
}


def test_golden_values() -> None:
    """The stream of a published run must never change: not with another numpy, not with a tidied line."""
    assert random_bits(7, 11, 3, Purpose.NOISE, 2).tolist() == [14081976565400000267, 8289001200454674242]
    assert [plan().case_of(step, 0) for step in range(10)] == [2, 3, 0, 4, 3, 0, 4, 1, 1, 0]
    assert plan().network_seed(3, 1) == 2976817019613845764
    for (step, k), expected in GOLDEN.items():
        row = rows(plan(ALWAYS).samples(step, [k]), 0)
        assert row.keys() == expected.keys()
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-14), name
