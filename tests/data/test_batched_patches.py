"""All samples by the same operators, as on a GPU: the same patches as one sample after the other, as on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from patches import CPU, hold, noise_case, planned, ramps, smooth_case
from test_sampler import EVERYTHING
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fusionseg.config import AugmentConfig
from fusionseg.data.loading.augmentation_protocol import Draws
from fusionseg.data.loading.device_cache import DeviceCache
from fusionseg.data.loading.patch_augmenter import PatchAugmenter
from fusionseg.data.loading.sampling_plan import SamplePlan, Samples
from fusionseg.data.loading.spatial.rules import ALL_AXES, SpatialRules, spatial_rules
from fusionseg.data.loading.transfer import send_together
from fusionseg.performance.pretended_gpu.operator_count import launches

PATCH = (12, 12, 10)
TRANSFERS = 1
"""Operators of a micro-batch that a CPU does not need: the transfer of the numbers."""
NO_CHANGE: dict[str, Any] = {"flip": 0, "shift_intensity": None}


def both(
    cache: DeviceCache, augment: dict[str, Any], rules: SpatialRules = ALL_AXES, patch: Any = PATCH, **keys: Any
) -> tuple[PatchAugmenter, PatchAugmenter]:
    settings = AugmentConfig.model_validate(augment)
    one, all_at_once = (PatchAugmenter(cache, settings, patch, CPU, rules, batched=b, **keys) for b in (False, True))
    return one, all_at_once


def plan_of(cache: DeviceCache, augment: dict[str, Any], rules: SpatialRules = ALL_AXES, patch: Any = PATCH) -> Any:
    return SamplePlan(
        cache.plan_cases, AugmentConfig.model_validate(augment), seed=4, patch=patch, global_batch=6,
        samples_per_volume=2, foreground=0.5, channels=cache.channels, rules=rules,
    )  # fmt: skip


def check(one: PatchAugmenter, all_at_once: PatchAugmenter, plan: Samples, atol: float = 5e-3) -> Tensor:
    (image, label), (wanted, wanted_label) = all_at_once(plan), one(plan)
    assert image.shape == wanted.shape and image.dtype == wanted.dtype and image.is_contiguous()
    assert label.shape == wanted_label.shape and label.dtype == wanted_label.dtype
    np.testing.assert_allclose(image, wanted, atol=atol)
    assert (label == wanted_label).float().mean() > 0.999  # but for ties
    return image


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> DeviceCache:
    """Three cases of two channels: larger than a patch, smaller, and both."""
    cases = smooth_case((26, 24, 22), 2), smooth_case((9, 8, 7), 2, 1), smooth_case((8, 30, 11), 2, 2)
    return hold(tmp_path_factory.mktemp("batched"), *cases, spacing=(1, 1, 1.5))


SPATIAL: dict[str, dict[str, Any]] = {
    "plain": {},
    "turned": {"flip": 0.5, "rotate90": {"prob": 0.7}},
    "rotated": {"flip": 0.5, "rotate": {"prob": 0.5, "degrees": 60}},
    "zoomed": {"scale": {"prob": 0.5, "factor": [0.5, 2], "per_axis": True}, "rotate90": {"prob": 0.5}},
    "sheared": {"shear": {"prob": 0.5, "degrees": 20}},
    "deformed": {"flip": 0.5, "elastic": {"prob": 0.5, "magnitude": 2, "spacing": 5}},
    "in slices": {"flip": 0.5, "rotate": {"prob": 0.6, "degrees": 40}, "elastic": {"prob": 0.6, "spacing": 4},
                  "axes": ["x", "y"]},
    "across slices": {"rotate": {"prob": 0.6, "degrees": 40}, "elastic": {"prob": 0.6, "spacing": 4},
                      "axes": ["x", "z"]},
}  # fmt: skip


@pytest.mark.parametrize("name", SPATIAL)
def test_patches_are_those_of_a_cpu(cache: DeviceCache, name: str) -> None:
    augment = NO_CHANGE | SPATIAL[name]
    rules = spatial_rules(AugmentConfig.model_validate(augment), PATCH, [record.spacing for record in cache.records])
    one, all_at_once = both(cache, augment, rules)
    plan = plan_of(cache, augment, rules)
    warped, cases = set(), set()
    for step in range(6):
        samples = plan.samples(step, range(6))
        image = check(one, all_at_once, samples)
        warped |= set(samples.warped.tolist())
        cases |= set(samples.case_index.tolist())
        for i in np.flatnonzero(~samples.warped):  # to the last bit; beside warped ones but for rounding
            alone, alone_label = one(plan.samples(step, [int(i)]))
            torch.testing.assert_close(image[i], alone[0], rtol=0, atol=1e-5 if samples.warped.any() else 0)
            assert torch.equal(all_at_once(samples)[1][i], alone_label[0])
    assert cases == {0, 1, 2} and warped == ({True, False} if name not in ("plain", "turned") else {False})


def test_every_augmentation_is_that_of_a_cpu(cache: DeviceCache) -> None:
    one, all_at_once = both(cache, EVERYTHING, mirrored=(0, 2, 1))
    plan = plan_of(cache, EVERYTHING)
    for step in range(8):
        check(one, all_at_once, plan.samples(step, range(6)))


EVERY_CHANGE: dict[str, Any] = {
    "preset": "nnunet", "axes": "all",
    **{key: {"prob": 1} for key in ("scale_intensity", "noise", "blur", "contrast", "low_resolution", "gamma_inverted",
                                    "gamma")},
}  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [{}, {"shift_intensity": {"prob": 1, "offset": 1}}, {"contrast": None, "blur": None}, {"low_resolution": None}],
)
def test_every_change_of_nnunet_in_one_micro_batch(tmp_path: Path, changed: dict[str, Any]) -> None:
    """Values of a unit range, one sample after the other as the reference: equal to 1e-5, by at most 30 operators."""
    image, label = smooth_case((26, 24, 22), 2)
    cache = hold(tmp_path, (image / np.ptp(image), label), smooth_case((9, 8, 7), 2, 1))
    one, all_at_once = both(cache, EVERY_CHANGE | changed)
    plan, mixed = plan_of(cache, EVERY_CHANGE | changed), 0
    for step in range(8):
        samples = plan.samples(step, range(6))
        mixed += len(set(samples.warped.tolist())) == 2
        check(one, all_at_once, samples, atol=1e-5)
        with Launches() as operators:
            all_at_once(samples)
        assert operators.count + TRANSFERS <= 30
    assert mixed


@pytest.mark.parametrize(
    ("exponent", "unit"),
    [((0.7, 1.5), 1e-9), ((0.7, 1.5), 1.0), ((0.7, 1.5), 1e6), ((0.5, 3.0), 1e-4), ((0.5, 3.0), 1e4)],
)
def test_both_gammas_in_any_unit(tmp_path: Path, exponent: tuple[float, float], unit: float) -> None:
    """Of one sample or of two, and with exponents whose product is large; a channel of one value stays as it is."""
    image, label = smooth_case(PATCH, 2)
    image[1] = -2.5
    cache = hold(tmp_path, (image * np.float32(unit), label))
    names = ("gamma_inverted", "gamma")
    one, all_at_once = both(cache, NO_CHANGE | {name: {"prob": 1, "exponent": exponent} for name in names})
    low, high = exponent
    for powers in ((low, high), (high, high), (high, 1.0), (1.0, low)):
        draws = {name: {"exponent": [[power, power]] * 2} for name, power in zip(names, powers, strict=True)}
        made = check(one, all_at_once, planned(2, draws=draws), atol=1e-5 * unit * float(np.ptp(image[0])))
        np.testing.assert_allclose(made[:, 1], -2.5 * unit, rtol=1e-5)


def test_a_linear_change_is_that_of_its_place(tmp_path: Path) -> None:
    """The factor comes before the offset, the outside of a volume is changed like its inside, and one sample is not."""
    cache = hold(tmp_path, ramps((6, 5, 4)))
    augment = NO_CHANGE | {"scale_intensity": {"prob": 1}, "shift_intensity": {"prob": 1}}
    _, all_at_once = both(cache, augment)
    draws = {"scale_intensity": {"factor": [2.0, 3.0]}, "shift_intensity": {"offset": [0.5, -0.5]}}
    plan = planned(2, draws=draws, origin=(1, 2, -3))
    plain, _ = both(cache, NO_CHANGE)[1](planned(2, origin=(1, 2, -3)))
    made, _ = all_at_once(plan)
    assert torch.equal(made[0], plain[0] * 2 + 0.5) and torch.equal(made[1], plain[1] * 3 - 0.5)
    plan.draws["augment.scale_intensity"] = Draws(np.array([False, True]), {"factor": np.array([3.0])})
    assert torch.equal(all_at_once(plan)[0][0], plain[0] + 0.5)


@pytest.mark.parametrize("name", ["gamma", "gamma_inverted"])
@pytest.mark.parametrize("retain_stats", [True, False])
@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e4])
def test_gamma_in_any_unit(tmp_path: Path, name: str, retain_stats: bool, unit: float) -> None:
    """Also a channel of one value, which stays as it is."""
    image, label = smooth_case(PATCH, 2)
    image[1] = -2.5
    cache = hold(tmp_path, (image * np.float32(unit), label))
    augment = NO_CHANGE | {name: {"prob": 1, "retain_stats": retain_stats}}
    one, all_at_once = both(cache, augment)
    for exponents in ([0.7, 1.5], [1.5, 0.7]):
        plan = planned(2, draws={name: {"exponent": [exponents, [1.2, 1.2]]}})
        made = check(one, all_at_once, plan, atol=1e-4 * unit)
        np.testing.assert_allclose(made[:, 1], -2.5 * unit, rtol=1e-5)


def test_a_half_precision_cache(tmp_path: Path) -> None:
    cases = [smooth_case((16, 14, 12), 2), noise_case((9, 8, 7), 2)]
    cache = hold(tmp_path, *cases, dtype="float16")
    augment = NO_CHANGE | {"flip": 0.5, "scale": {"prob": 0.3}}
    one, all_at_once = both(cache, augment)
    plan = plan_of(cache, augment)
    for step in range(4):
        check(one, all_at_once, plan.samples(step, range(6)))


class Launches(TorchDispatchMode):
    """Counts what would launch kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += launches(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("augment", "most"),
    [
        (NO_CHANGE, 5),
        (NO_CHANGE | {"flip": 0.5, "rotate": {"prob": 0.3}, "elastic": {"prob": 0.3}}, 12),
        (EVERYTHING, 37),
    ],
)
def test_the_number_of_operators_depends_on_no_draw_and_no_batch(
    cache: DeviceCache, augment: dict[str, Any], most: int
) -> None:
    """At most the given number, whatever is drawn, and for any number of samples the same when all is drawn."""
    _, all_at_once = both(cache, augment)
    plan = plan_of(cache, augment)
    counts = []
    for step in range(12):
        samples = plan.samples(step, range(6))
        with Launches() as operators:
            all_at_once(samples)
        counts.append(operators.count)
    assert max(counts) <= most
    samples = plan.samples(int(np.argmax(counts)), range(6))
    doubled = Samples(**{name: twice(value) for name, value in vars(samples).items()})
    with Launches() as operators:
        assert len(all_at_once(doubled)[0]) == 12
    assert operators.count == max(counts)


def twice(value: Any) -> Any:
    """The numbers of the samples, two times."""
    if isinstance(value, dict):
        return {
            key: type(draws)(np.tile(draws.hit, 2), {n: np.concatenate([v, v]) for n, v in draws.values.items()})
            for key, draws in value.items()
        }
    return np.concatenate([value, value]) if isinstance(value, np.ndarray) else value


def test_arrays_of_any_type_and_shape_are_sent_together() -> None:
    arrays = {
        "a": np.arange(5, dtype=np.int32),
        "b": np.array([True, False, True]),
        "c": np.arange(6.0, dtype=np.float32).reshape(2, 3)[:, ::-1],
        "d": np.zeros((0, 4), np.int64),
        "e": np.array([[2**60]]),
        "f": np.broadcast_to(np.float32(2.5), (3, 2)),
    }
    sent = send_together(arrays, CPU)
    assert len({tensor.untyped_storage().data_ptr() for name, tensor in sent.items() if name != "d"}) == 1
    for name, values in arrays.items():
        np.testing.assert_array_equal(sent[name].numpy(), values)
        assert sent[name].numpy().dtype == values.dtype
    assert send_together({}, CPU) == {}
