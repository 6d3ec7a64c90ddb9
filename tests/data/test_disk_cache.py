"""A cache on disk: the samples of one in memory, to the last bit, whatever was read ahead."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import preparing
import pytest
import torch

from fusionseg.config import AugmentConfig, CacheConfig, RunConfig
from fusionseg.data.loading.caches.case_cache import CaseCache
from fusionseg.data.loading.caches.disk_cache import DiskCache
from fusionseg.data.loading.caches.read_ahead import ReadAhead
from fusionseg.data.loading.device_cache import DeviceCache
from fusionseg.data.loading.patch_augmenter import PatchAugmenter
from fusionseg.data.loading.sampling_plan import SamplePlan
from fusionseg.data.loading.spatial.rules import SpatialRules
from fusionseg.data.preprocessing.store import Store
from fusionseg.utils.errors import UserError

CPU = torch.device("cpu")
PATCH = (14, 20, 14)  # along the second axis, it is as long as some volumes and longer than others
RULES = SpatialRules(turn_axes=(1,))
EVERYTHING: dict[str, Any] = {
    "flip": 0.5,
    "rotate": {"prob": 0.4, "degrees": 30},
    "scale": {"prob": 0.4, "factor": 0.3},
    "elastic": {"prob": 0.3, "magnitude": 2.0},
    "rotate90": {"prob": 0.3},
    "noise": {"prob": 0.3, "std": 0.05},
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: Any, make_dataset: Any, tiny_config: Callable[..., RunConfig]) -> dict[str, Store]:
    """A prepared data set of two channels, stored in each type."""
    folder = tmp_path_factory.mktemp("disk")
    root = make_dataset(folder / "Task95", cases=5, classes=3, channels=2)
    return {
        dtype: preparing.run(tiny_config(root, folder, data={"dtype": dtype})).store for dtype in ("float16", "float32")
    }


def plan_of(cache: CaseCache, augment: AugmentConfig, rules: SpatialRules = RULES) -> SamplePlan:
    return SamplePlan(
        cache.plan_cases, augment, seed=3, patch=PATCH, global_batch=4, samples_per_volume=2,
        foreground=0.5, channels=cache.channels, rules=rules,
    )  # fmt: skip


@pytest.mark.parametrize("rules", [RULES, SpatialRules(through_plane=2)], ids=["all_axes", "in_plane"])
@pytest.mark.parametrize(("stored", "held"), [("float16", "float16"), ("float32", "float16"), ("float16", "float32")])
def test_its_samples_are_those_of_a_cache_in_memory(
    stores: dict[str, Store], stored: str, held: str, rules: SpatialRules
) -> None:
    changes = {key: value for key, value in EVERYTHING.items() if rules is RULES or key != "rotate90"}
    augment, config = AugmentConfig.model_validate(changes), CacheConfig.model_validate({"dtype": held})
    cases = [(stores[stored], name) for name in sorted(stores[stored].cases)]
    made = []
    for cache in (DeviceCache(cases, config, CPU), DiskCache(cases, config)):
        plan = plan_of(cache, augment, rules)
        augmenter = PatchAugmenter(cache, augment, PATCH, CPU, rules)
        made.append([augmenter(plan.samples(step, range(4))) for step in range(8)])
        assert all(len(case.foreground) for case in plan.cases)
    for (image, label), (other, other_label) in zip(*made, strict=True):
        assert torch.equal(image, other) and torch.equal(label, other_label)
    assert any(label.any() for _, label in made[0])


def test_whole_volumes(stores: dict[str, Store]) -> None:
    cases = [(stores["float32"], name) for name in sorted(stores["float32"].cases)]
    held, disk = DeviceCache(cases, CacheConfig(), CPU), DiskCache(cases, CacheConfig())
    for index in range(len(cases)):
        for ours, theirs in zip(disk.volume(index), held.volume(index), strict=True):
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
        assert torch.equal(disk.background(index), held.background(index))


def test_what_is_read_ahead_is_what_is_asked_for(stores: dict[str, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything read ahead, the augmenter itself reads nothing, in any step and after a jump to another one."""
    augment = AugmentConfig.model_validate(EVERYTHING)
    cases = [(stores["float16"], name) for name in sorted(stores["float16"].cases)]
    cache = DiskCache(cases, CacheConfig())
    plan = plan_of(cache, augment)
    augmenter, ahead = PatchAugmenter(cache, augment, PATCH, CPU), ReadAhead(cache, plan, RULES, threads=2)
    fresh = DiskCache(cases, CacheConfig())
    expected = PatchAugmenter(fresh, augment, PATCH, CPU)
    read, readers = cache.read, []

    def noted(case_index: int, box: Any) -> Any:
        readers.append(threading.current_thread().name)
        return read(case_index, box)

    monkeypatch.setattr(cache, "read", noted)
    for step in (0, 1, 2, 7, 8):
        ahead.expect((step + later, range(4)) for later in range(100))
        ahead.bring(step, range(4))
        image, label = augmenter(plan.samples(step, range(4)))
        wanted = expected(plan_of(fresh, augment).samples(step, range(4)))
        assert torch.equal(image, wanted[0]) and torch.equal(label, wanted[1])
    ahead.close()
    assert ahead.depth == 4 and len(readers) >= 20
    assert all(name.startswith("read-ahead") for name in readers)


def test_a_case_that_was_prepared_again_is_noticed(
    stores: dict[str, Store], tmp_path: Path, make_dataset: Any, tiny_config: Callable[..., RunConfig]
) -> None:
    root = make_dataset(tmp_path / "Task96", cases=1, seed=5)
    store = preparing.run(tiny_config(root, tmp_path)).store
    ((name, record),) = store.cases.items()
    cache = DiskCache([(store, name)], CacheConfig())
    folder = store.root / record.folder
    text = (folder / "case.json").read_text()
    (folder / "case.json").write_text(text.replace(str(record.checksums[0]), str(record.checksums[0] + 1)))
    with pytest.raises(UserError, match=r"do not match their record .*prepared the case again"):
        cache.volume(0)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="cannot be read"):
        cache.volume(0)


def test_positions_of_some_classes_and_of_annotated_voxels() -> None:
    from fusionseg.data.loading.caches.plan_cases import PositionsOnDisk

    values = np.arange(100, 120)
    positions = PositionsOnDisk(lambda: values, [(2, 5), (10, 10), (12, 14)])
    assert [int(positions[index]) for index in range(len(positions))] == [102, 103, 104, 112, 113]
