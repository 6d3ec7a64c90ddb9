"""The device cache: where it goes and why, what it takes, and that it holds what was prepared."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import preparing
import pytest
import torch

from fusionseg.config import CacheConfig, validate
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.data.loading.caches.placement import Placement, place_cache
from fusionseg.data.loading.device_cache import DeviceCache, cache_bytes, shared_bytes
from fusionseg.data.preprocessing.store import Store, write_case
from fusionseg.data.preprocessing.volume import Volume
from fusionseg.utils.errors import UserError

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
GB = 10**9


def place(needed: float, device: str, training: torch.device = GPU, **memory: Any) -> Placement:
    given = {"accelerator_free": 16 * GB, "host_free": 64 * GB, **memory}
    if training == CPU:
        given["accelerator_free"] = 0
    given.setdefault("disk", device != "auto")  # without a disk, there is no room for what does not fit
    return place_cache(int(needed * GB), CacheConfig.model_validate({"device": device}), training, **given)


@pytest.mark.parametrize(
    ("needed", "device", "training", "ranks", "expected", "reason"),
    [
        (
            8,
            "auto",
            GPU,
            1,
            GPU,
            "8.00 GB of 16.0 GB free on cuda:0, 0.5 of it (cache.memory_fraction) allowed",
        ),
        (8.01, "auto", GPU, 1, CPU, "falls back to the host, because it needs 8.01 GB of 16.0 GB free on cuda:0"),
        (8, "accelerator", GPU, 4, GPU, "16.0 GB free on cuda:0"),
        (1, "host", GPU, 1, CPU, "1.00 GB for 1 rank of 64.0 GB host memory free"),
        (1, "host", GPU, 8, CPU, "8.00 GB for 8 ranks of 64.0 GB host memory free"),
        (32, "auto", CPU, 1, CPU, "32.00 GB for 1 rank"),
        (16, "auto", GPU, 2, CPU, "32.00 GB for 2 ranks"),
        (4, "auto", CPU, 8, CPU, "32.00 GB for 8 ranks"),
        (8, "auto", torch.device("cuda", 3), 8, torch.device("cuda", 3), "on cuda:3"),
    ],
)
def test_where_it_goes(
    needed: float, device: str, training: torch.device, ranks: int, expected: torch.device, reason: str
) -> None:
    placement = place(needed, device, training, ranks_on_host=ranks)
    assert placement.device == expected
    assert placement.memory == ("host" if expected == CPU else "accelerator")
    assert reason in placement.reason


@pytest.mark.parametrize(
    ("needed", "device", "training", "ranks", "message"),
    [
        (8.01, "accelerator", GPU, 1, "does not fit the accelerator .*set it to auto to use the host"),
        (1, "accelerator", CPU, 1, "trains on the CPU; set it to auto or host"),
        (33, "host", GPU, 1, "does not fit, on the host .*33.00 GB for 1 rank"),
        (
            9,
            "auto",
            GPU,
            4,
            "neither on the device .*9.00 GB of 16.0.* nor on the host .*36.00 GB for 4 ranks",
        ),
        (33, "auto", CPU, 1, "does not fit, on the host"),
    ],
)
def test_where_it_does_not_fit(needed: float, device: str, training: torch.device, ranks: int, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        place(needed, device, training, ranks_on_host=ranks)
    if training == GPU or device != "accelerator":
        for fix in ("data.crop_foreground", "data.spacing", "cache.dtype: float16", "cache.memory_fraction"):
            assert fix in str(caught.value)


def test_what_fits_nowhere_stays_on_disk() -> None:
    placement = place(9, "auto", host_free=17 * GB, ranks_on_host=2, disk=True)
    assert placement.memory == "disk" and placement.device == CPU
    assert "9.00 GB of 16.0 GB free on cuda:0" in placement.reason and "18.00 GB for 2 ranks" in placement.reason
    assert [" ".join(line.split()) for line in placement.table[1:]] == [
        "cuda:0 9.00 GB 16.00 GB 8.00 GB too little",
        "host 18.00 GB 17.00 GB 8.50 GB too little",
        "disk - - - chosen, read ahead",
    ]
    with pytest.raises(UserError, match=r"on the host .*set cache\.device: disk"):
        place(33, "host")


def test_the_table_ends_with_the_chosen_memory() -> None:
    assert len(place(1, "auto").table) == 2 and "chosen" in place(1, "auto").table[1]
    table = place(9, "auto").table
    assert "too little" in table[1] and table[2].startswith("host") and table[2].endswith("chosen")


def test_the_disk_needs_no_memory() -> None:
    placement = place(10**6, "disk", host_free=0, accelerator_free=0)
    assert placement.memory == "disk" and placement.device == CPU


@pytest.mark.parametrize("memory", ["auto", "host", "disk"])
def test_a_memory_as_placement_is_short_for_the_device(memory: str) -> None:
    config = CacheConfig.model_validate({"placement": memory})
    assert (config.placement, config.device) == ("replicated", memory)
    assert CacheConfig.model_validate({"placement": memory, "device": memory}) == config


def test_two_memories_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"cache\.placement: disk is short for device: disk, but device is 'accelerator'"
    ):
        validate({"model": {"name": "unet"}, "cache": {"placement": "disk", "device": "accelerator"}})


def test_the_fraction_is_the_configurations() -> None:
    config = CacheConfig.model_validate({"memory_fraction": 0.9})
    memory = {"accelerator_free": 10 * GB, "host_free": 0}
    assert place_cache(9 * GB, config, GPU, **memory).device == GPU
    with pytest.raises(UserError):
        place_cache(9 * GB + 1, config, GPU, **memory, disk=False)


@pytest.fixture(scope="module")
def stores(tmp_path_factory, make_dataset, tiny_config) -> dict[str, Store]:
    """A prepared data set of two channels and three classes, stored in each type."""
    folder = tmp_path_factory.mktemp("cache")
    root = make_dataset(folder / "Task94", cases=4, classes=3, channels=2)
    found = {}
    for dtype in ("float16", "float32"):
        config = tiny_config(root, folder, data={"dtype": dtype})
        found[dtype] = preparing.run(config).store
    return found


@pytest.mark.parametrize("stored", ["float16", "float32"])
@pytest.mark.parametrize("held", ["float16", "float32"])
def test_it_holds_what_was_prepared(stores: dict[str, Store], stored: str, held: str) -> None:
    store, config = stores[stored], CacheConfig.model_validate({"dtype": held})
    names = ["case_002", "case_000", "case_003"]  # any order, not all
    cache = DeviceCache([(store, name) for name in names], config, CPU)
    assert len(cache) == 3 and [record.name for record in cache.records] == names
    assert cache.nbytes == cache_bytes([store.cases[name] for name in names], config)
    voxels = sum(prod(store.cases[name].shape) for name in names)
    assert cache.nbytes == voxels * (2 * {"float16": 2, "float32": 4}[held] + 1)
    for number, name in enumerate(names):
        image, label = cache.volume(number)
        record = store.cases[name]
        assert image.dtype == getattr(torch, held) and label.dtype == torch.uint8
        np.testing.assert_array_equal(image.numpy(), store.image(name).astype(held))
        np.testing.assert_array_equal(label.numpy(), store.label(name))
        assert image.untyped_storage().data_ptr() == cache.image.untyped_storage().data_ptr()
        assert label.untyped_storage().data_ptr() == cache.label.untyped_storage().data_ptr()
        assert cache.background(number).shape == (2, 1, 1, 1)
        assert cache.background(number).flatten().tolist() == np.array(record.background).astype(held).tolist()
        index = cache.plan_cases[number]
        assert (index.name, index.shape, index.class_offsets) == (name, record.shape, record.class_offsets)
        np.testing.assert_array_equal(index.foreground, store.foreground(name))
        assert (label.flatten()[torch.from_numpy(index.foreground)] > 0).all()


def test_shared_memory_counts_once() -> None:
    assert "20.00 GB shared by 8 ranks of 64.0 GB" in place(20, "host", ranks_on_host=8, shared=True).reason
    with pytest.raises(UserError, match=r"33\.00 GB shared by 8 ranks"):
        place(33, "host", ranks_on_host=8, shared=True)


def test_a_rank_reads_what_another_one_filled(stores: dict[str, Store]) -> None:
    store, config = stores["float32"], CacheConfig()
    cases = [(store, name) for name in store.cases]
    own = DeviceCache(cases, config, CPU)
    memory = torch.zeros(shared_bytes(list(store.cases.values()), config), dtype=torch.uint8)
    unread = replace(store, root=Path("/nowhere"))  # it opens no file
    reader = DeviceCache([(unread, name) for name in store.cases], config, CPU, memory, fills=False)
    assert not memory.any()
    DeviceCache(cases, config, CPU, memory)
    first = int(own.first_voxel[0])
    assert torch.equal(reader.image[:, first:], own.image[:, first:]) and torch.equal(reader.label, own.label)
    assert torch.equal(reader.image[:, : len(own)], own.image[:, : len(own)])
    inside = range(memory.data_ptr(), memory.data_ptr() + memory.numel())
    for case, read in zip(own.plan_cases, reader.plan_cases, strict=True):
        assert isinstance(read.foreground, np.ndarray) and read.foreground.ctypes.data in inside
        np.testing.assert_array_equal(read.foreground, case.foreground)
        assert (read.name, read.class_offsets, len(read.foreground) > 0) == (case.name, case.class_offsets, True)


def bare(root: Path, name: str, channels: int, label: bool) -> Any:
    mask = np.ones((3, 4, 5), np.uint8) if label else None
    volume = Volume(np.ones((channels, 3, 4, 5), np.float32), mask, np.eye(4), (3, 4, 5), np.eye(4))
    return write_case(root, name, volume, [], "float32")


def test_a_case_without_label_has_label_zero(tmp_path: Path) -> None:
    cases = {name: bare(tmp_path, name, 1, name == "b") for name in ("a", "b")}
    store = Store(tmp_path, "t", ("CT",), LabelScheme.of_names("bf"), cases)
    cache = DeviceCache([(store, "a"), (store, "b")], CacheConfig(), CPU)
    assert not cache.volume(0)[1].any() and cache.volume(1)[1].all()


def test_cases_of_other_channels_are_refused(tmp_path: Path) -> None:
    cases = {"a": bare(tmp_path, "a", 1, True), "b": bare(tmp_path, "b", 2, True)}
    store = Store(tmp_path, "t", ("CT",), LabelScheme.of_names("bf"), cases)
    with pytest.raises(UserError, match=r"differ in their number of channels: \[1, 2\]"):
        DeviceCache([(store, "a"), (store, "b")], CacheConfig(), CPU)
