"""Augmentations of a user's own: drawn by the plan, applied on the device, exact in every topology."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import preparing
import pytest
import torch
from patches import plan_and_augmenter

from fusionseg import train
from fusionseg.config import AugmentConfig, RunConfig, dump_config
from fusionseg.data.loading.augmentations import check_augmentations
from fusionseg.data.loading.device_cache import DeviceCache
from fusionseg.data.loading.patch_augmenter import PatchAugmenter
from fusionseg.data.loading.sampling_plan import SamplePlan
from fusionseg.utils.errors import UserError

PATCH = (12, 10, 8)
CPU = torch.device("cpu")
OWN: dict[str, Any] = {
    "shift_intensity": {"prob": 0.5},
    "scale_intensity": {"prob": 0.5},
    "noise": {"prob": 0.5},
    "elastic": {"prob": 0.3},
}
MINE = """
import numpy as np
import torch

class Gamma:
    def __init__(self, low=0.7, high=1.5):
        self.low, self.high = low, high

    def draw(self, rng):
        return {"gamma": rng.uniform(self.low, self.high), "key": rng.integers(100), "knots": rng.normal(size=3)}

    def apply(self, image, label, drawn):
        assert drawn["gamma"].dtype == torch.float32 and drawn["key"].dtype == torch.int64
        assert drawn["knots"].shape == (len(image), 3) and drawn.host["gamma"].dtype == np.float64
        lowest = image.amin((1, 2, 3, 4), keepdim=True)
        return (image - lowest) ** drawn["gamma"].view(-1, 1, 1, 1, 1) + lowest, label

class Swap(Gamma):
    def apply(self, image, label, drawn):
        return image.flip(2), label.flip(2)

class Global(Gamma):
    def apply(self, image, label, drawn):
        return image + torch.rand(1), label

class GlobalDraw(Gamma):
    def draw(self, rng):
        return {"gamma": np.random.rand()}
    def apply(self, image, label, drawn):
        return image * drawn["gamma"].view(-1, 1, 1, 1, 1), label

class Smaller(Gamma):
    def apply(self, image, label, drawn):
        return image[:, :, 1:], label

class ImageOnly(Gamma):
    def apply(self, image, label, drawn):
        return image

class Fails(Gamma):
    def apply(self, image, label, drawn):
        raise RuntimeError("no such thing")

class DrawsList(Gamma):
    def draw(self, rng):
        return [1]

class NoApply:
    def draw(self, rng):
        return {}
"""
GAMMA = {"name": "my_aug:Gamma", "prob": 0.6}


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_aug", raising=False)  # of another test's folder
    (tmp_path / "my_aug.py").write_text(MINE)


@pytest.fixture
def cache(balls: Path, tmp_path: Path, tiny_config: Callable[..., RunConfig]) -> DeviceCache:
    config = tiny_config(balls, tmp_path)
    assert preparing.run(config).failed == {}
    store = preparing.opened(config)
    return DeviceCache([(store, name) for name in store.cases], config.cache, CPU)


def made(cache: DeviceCache, *also: object, **own: Any) -> tuple[SamplePlan, PatchAugmenter]:
    return plan_and_augmenter(cache, {**OWN, **own, "also": list(also)}, PATCH, seed=3)


MONAI = {"name": "monai.transforms:RandAdjustContrastd", "args": {"prob": 0.8, "gamma": [0.5, 2]}}
SPATIAL = {
    "name": "monai.transforms:RandAffined",
    "args": {"keys": ["image", "label"], "prob": 0.8, "rotate_range": 0.5, "mode": ["bilinear", "nearest"]},
}


@pytest.mark.parametrize("also", [[GAMMA], [MONAI], [SPATIAL, GAMMA]], ids=["own", "monai", "two"])
def test_a_sample_does_not_depend_on_its_batch_or_on_what_came_before(cache: DeviceCache, also: list[Any]) -> None:
    plan, augmenter = made(cache, *also)
    plain_plan, plain = made(cache)
    changed = 0
    for step in range(3):
        image, label = augmenter(plan.samples(step, range(8)))
        again, other = made(cache, *also)
        for ks in ([5, 1], [2], range(4, 8)):
            one, one_label = other(again.samples(step, list(ks)))
            for i, k in enumerate(ks):
                assert torch.equal(one[i], image[k]) and torch.equal(one_label[i], label[k]), (step, k)
        before, before_label = plain(plain_plan.samples(step, range(8)))
        changed += sum(not torch.equal(image[k], before[k]) for k in range(8))
        assert image.dtype == torch.float32 and label.dtype == torch.int64 and label.shape == before_label.shape
        if also == [SPATIAL, GAMMA]:
            assert not torch.equal(label, before_label)
        else:
            assert torch.equal(label, before_label)
    assert 8 <= changed <= (24 if len(also) == 2 else 22)  # of 24, and not all


def test_an_augmentation_of_ones_own_changes_no_other_number(cache: DeviceCache) -> None:
    swap = {"name": "my_aug:Swap", "prob": 0.5}
    with_it, _ = made(cache, GAMMA)
    without, _ = made(cache)
    beside, _ = made(cache, swap, GAMMA)
    twice, _ = made(cache, GAMMA, GAMMA)
    for step in range(5):
        one, other = with_it.samples(step, range(8)), without.samples(step, range(8))
        for name in ("origin", "flip", "angles", "zoom", "elastic", "elastic_key"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        for key, draws in other.draws.items():
            np.testing.assert_array_equal(one.draws[key].hit, draws.hit)
            for name, values in draws.values.items():
                np.testing.assert_array_equal(one.draws[key].values[name], values)
        gamma = one.draws["augment.also.0"].values["gamma"]
        np.testing.assert_array_equal(gamma, beside.samples(step, range(8)).draws["augment.also.1"].values["gamma"])
        first, second = (twice.samples(step, range(8)).draws[f"augment.also.{i}"] for i in (0, 1))
        np.testing.assert_array_equal(gamma, first.values["gamma"])
        assert not set(gamma.tolist()) & set(second.values["gamma"].tolist())


def test_the_numbers_of_a_published_run_stay(cache: DeviceCache) -> None:
    draws = made(cache, GAMMA)[0].samples(1, range(8)).draws["augment.also.0"]
    assert draws.hit.tolist() == GOLDEN_HIT
    assert draws.values["gamma"] == pytest.approx(GOLDEN_GAMMA, rel=1e-14)


GOLDEN_HIT = [False, True, False, True, True, False, False, True]
GOLDEN_GAMMA = [0.7767097075137572, 0.780082082584839, 1.1814283915840302, 1.2597321802622954]


@pytest.mark.parametrize(
    ("also", "message"),
    [
        ("my_aug:Smaller", r"augment\.also\.0: apply returned a wrong image \(expected \(1, 2, 12, 10, 8\)"),
        ("my_aug:ImageOnly", r"augment\.also\.0: apply returned a Tensor \(expected \(image, label\)\)"),
        ("my_aug:Fails", r"augment\.also\.0: fails: .*my_aug.py, line \d+: RuntimeError: no such thing"),
        ("my_aug:DrawsList", r"draw returned an invalid value \(expected a dictionary, got \[1\]"),
        ("my_aug:NoApply", r"augment\.also\.0: my_aug:NoApply is not an augmentation: it lacks apply"),
        ("my_aug:Global", "two different results for the same sample"),
        ("my_aug:GlobalDraw", "two different results for the same sample"),
        ("monai.transforms:ScaleIntensityd", r"not a random transform of dictionaries .*data\.transforms"),
        ("monai.transforms:RandAdjustContrast", "not a random transform of dictionaries"),
        ({"name": "monai.transforms:RandFlipd"}, r"would move the image and not its label; add args"),
        ({"name": "my_aug:Gamma", "args": {"high": 1, "low": 2, "hgh": 3}}, "did you mean high"),
        ({"name": "my_aug:Gamma", "prob": 2}, "less than or equal to 1"),
    ],
)
def test_a_wrong_augmentation_is_refused_before_the_training(also: object, message: str) -> None:
    with pytest.raises((UserError, ValueError), match=message):
        check_augmentations(AugmentConfig.model_validate({"also": [also]}), 2, PATCH, CPU)


def test_right_ones_pass_the_check() -> None:
    check_augmentations(AugmentConfig.model_validate({**OWN, "also": [GAMMA, MONAI, SPATIAL]}), 2, PATCH, CPU)


def test_a_dry_run_refuses_a_wrong_augmentation(
    balls: Path, tmp_path: Path, tiny_config: Callable[..., RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(tiny_config(balls, tmp_path / "runs", augment={"also": ["my_aug:Smaller"]})))
    assert train.main(["--config", str(file), "--dry-run"]) == 2
    assert "augment.also.0: apply returned a wrong image" in capsys.readouterr().err
