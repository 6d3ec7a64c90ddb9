"""Cases in a cache, planned samples and patches, for the tests of sampling and augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from fusionseg.config import AugmentConfig, CacheConfig
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.data.loading.augmentation_protocol import Draws
from fusionseg.data.loading.device_cache import DeviceCache
from fusionseg.data.loading.patch_augmenter import PatchAugmenter
from fusionseg.data.loading.sampling_plan import SamplePlan, Samples
from fusionseg.data.loading.spatial.rules import ALL_AXES, SpatialRules
from fusionseg.data.preprocessing.store import Store, write_case
from fusionseg.data.preprocessing.volume import Volume

CPU = torch.device("cpu")
Arrays = tuple[NDArray[np.float32], NDArray[np.uint8]]


def hold(folder: Path, *cases: Arrays, spacing: tuple[float, ...] = (1, 1, 1), dtype: str = "float32") -> DeviceCache:
    """A cache of these (image (C, X, Y, Z), label (X, Y, Z)), by way of a store on disk."""
    affine, records = np.diag([*spacing, 1.0]), {}
    for number, (image, label) in enumerate(cases):
        x, y, z = label.shape
        volume = Volume(image, label, affine, (x, y, z), affine)
        records[f"c{number}"] = write_case(folder, f"c{number}", volume, [], "float32")
    store = Store(folder, "t", ("a",), LabelScheme.of_names("0123"), records)
    return DeviceCache([(store, name) for name in records], CacheConfig.model_validate({"dtype": dtype}), CPU)


def noise_case(shape: tuple[int, int, int], channels: int = 2, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(channels, *shape)).astype(np.float32), rng.integers(0, 4, shape).astype(np.uint8)


def smooth_case(shape: tuple[int, int, int], channels: int = 1, seed: int = 0) -> Arrays:
    image, _ = noise_case(shape, channels, seed)
    image = np.stack([ndimage.gaussian_filter(part, 2) for part in image]) * 10
    return image.astype(np.float32), (image[0] > 0.5).astype(np.uint8)


def ramps(shape: tuple[int, int, int]) -> Arrays:
    """Three channels that hold the voxel's own coordinates."""
    return np.stack(np.meshgrid(*(np.arange(s) for s in shape), indexing="ij")).astype(np.float32), np.ones(
        shape, np.uint8
    )


def planned(count: int = 1, **given: Any) -> Samples:
    """Samples of case 0 at the origin, unchanged but for what is given (each value for all of them).

    Args:
        given: also `draws`, by augmentation and name, with the numbers of every sample.
    """
    draws = {
        f"augment.{key}": Draws(np.ones(count, np.bool_), {name: np.asarray(part) for name, part in numbers.items()})
        for key, numbers in given.pop("draws", {}).items()
    }
    values: dict[str, Any] = {
        "sample": np.arange(count),
        "case_index": np.zeros(count, np.int64),
        "origin": np.zeros((count, 3), np.int64),
        "flip": np.zeros((count, 3), np.bool_),
        "angles": np.zeros((count, 3)),
        "quarter_turns": np.zeros((count, 3), np.int64),
        "zoom": np.ones((count, 3)),
        "shear": np.zeros((count, 6)),
        "elastic": np.zeros(count),
        "elastic_key": np.zeros(count, np.int64),
    }
    for name, value in given.items():
        values[name] = np.broadcast_to(np.asarray(value, values[name].dtype), values[name].shape).copy()
    return Samples(step=0, draws=draws, **values)


def sampler(
    cache: DeviceCache, patch: tuple[int, int, int], rules: SpatialRules = ALL_AXES, **augment: Any
) -> PatchAugmenter:
    return PatchAugmenter(cache, AugmentConfig.model_validate(augment), patch, CPU, rules)


def plan_and_augmenter(
    cache: DeviceCache, augment: dict[str, Any], patch: tuple[int, int, int], *, seed: int
) -> tuple[SamplePlan, PatchAugmenter]:
    """The plan of global batches of 8 samples of a cache, and what makes its patches."""
    settings = AugmentConfig.model_validate(augment)
    plan = SamplePlan(
        cache.plan_cases,
        settings,
        seed=seed,
        patch=patch,
        global_batch=8,
        samples_per_volume=2,
        foreground=0.5,
        channels=cache.channels,
    )
    return plan, PatchAugmenter(cache, settings, patch, CPU)


def forced(name: str, made: PatchAugmenter, plan: Samples) -> tuple[Tensor, Tensor]:
    """The first sample through `_cut` or `_warp`, whatever the plan would choose."""
    image = torch.full((made.cache.channels, *made.patch), torch.nan)
    label = torch.full(made.patch, 255, dtype=torch.uint8)
    getattr(made, name)(plan, 0, image, label)
    return image, label
