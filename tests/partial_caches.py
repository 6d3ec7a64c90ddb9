"""Helpers of the tests of caches that hold a part of the cases: prepared cases, and the samples that a cache gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import preparing
import torch
from torch import Tensor

from fusionseg.config import AugmentConfig, RunConfig
from fusionseg.data.loading.caches.case_cache import CaseCache
from fusionseg.data.loading.patch_augmenter import PatchAugmenter
from fusionseg.data.loading.sampling.case_shares import CaseShares
from fusionseg.data.loading.sampling.case_window import CaseWindow
from fusionseg.data.loading.sampling_plan import SamplePlan
from fusionseg.data.preprocessing.store import Store

CPU = torch.device("cpu")
AUGMENT = AugmentConfig.model_validate({"flip": 0.5, "rotate": {"prob": 0.5, "degrees": 30}})
PATCH = (16, 16, 16)
TRAINING_CASES = 6
"""The first cases of `cases_of`; the last one is a validation case."""


def prepare_seven(folder: Path, make_dataset: Callable[..., Path], tiny_config: Callable[..., RunConfig]) -> Store:
    """Prepare seven cases of two classes in a folder."""
    root = make_dataset(folder / "Task97", cases=TRAINING_CASES + 1, classes=3)
    return preparing.run(tiny_config(root, folder)).store


def cases_of(store: Store) -> list[tuple[Store, str]]:
    """Return the cases of a store, as a cache takes them."""
    return [(store, name) for name in sorted(store.cases)]


def voxels_of(cases: Sequence[tuple[Store, str]]) -> list[int]:
    """Return the number of voxels of each case."""
    return [int(np.prod(store.cases[name].shape)) for store, name in cases]


def batch(
    cache: CaseCache, draws: CaseShares | CaseWindow, step: int, indices: range, *, batched: bool
) -> tuple[Tensor, Tensor]:
    """Make samples of a step from a cache: image (B, 1, 16, 16, 16), and label."""
    plan = SamplePlan(
        cache.plan_cases[:TRAINING_CASES], AUGMENT, seed=3, patch=PATCH, global_batch=draws.global_batch,
        samples_per_volume=1, foreground=0.5, channels=1, draws=draws,
    )  # fmt: skip
    return PatchAugmenter(cache, AUGMENT, PATCH, CPU, batched=batched)(plan.samples(step, indices))
