"""From a configuration to the cache, the plan and the sampler of a run."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from fusionseg.config import RunConfig
from fusionseg.data.formats.ignored_entries import unlabelled_cases
from fusionseg.data.loading.augmentations import check_augmentations
from fusionseg.data.loading.device_cache import DeviceCache, cache_bytes, place_cache
from fusionseg.data.loading.patch_augmenter import PatchAugmenter
from fusionseg.data.loading.sampling_plan import SamplePlan
from fusionseg.data.preprocessing.lost_foreground import lost_foreground_warning
from fusionseg.data.preprocessing.prepare import prepare
from fusionseg.data.preprocessing.store import Store
from fusionseg.distributed.world import World
from fusionseg.observability.progress import counting_progress
from fusionseg.observability.ranges import annotate
from fusionseg.runs.cases.opening import RunCases, log_split, settle_split
from fusionseg.runs.cases.split import Split
from fusionseg.utils.errors import UserError
from fusionseg.utils.machine import available_memory_bytes

log = logging.getLogger("fusionseg")


@dataclass
class TrainingData:
    """What the training loop draws its batches from."""

    channels: tuple[str, ...]
    labels: dict[int, str]
    """Value -> name, of the (first) data set."""
    split: Split
    validation_numbers: list[int]
    """Case numbers within the cache."""
    cache: DeviceCache
    plan: SamplePlan
    sampler: PatchAugmenter

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the foreground classes 1, 2, ..."""
        return tuple(self.labels[value] for value in sorted(self.labels) if value != 0)

    @property
    def content(self) -> str:
        """A hash of the names and the files of all cases: what a checkpoint without a split says of its data."""
        contents = "".join(
            name + record.content for name, record in zip(self.cache.names, self.cache.records, strict=True)
        )
        return hashlib.sha256(contents.encode()).hexdigest()[:16]

    def batch(self, step: int, indices: range) -> tuple[Tensor, Tensor]:
        """Samples `indices` of `step`, on the training device."""
        return self.sampler(self.plan.samples(step, indices))


def open_training_data(config: RunConfig, world: World, run: RunCases) -> TrainingData:
    """Prepare what is not prepared yet, and load the cache.

    Raises:
        UserError: cases cannot be prepared, or do not keep training and validation apart; or the cache fits nowhere.
    """
    if world.is_rank_zero:
        for part in run.datasets:
            unlabelled = unlabelled_cases(part.dataset.training) if config.pretrain is None else []
            for note in (*part.dataset.notes, *unlabelled):
                log.warning("%s", note)
    settled: list[tuple[list[Store], Split]] = []
    with annotate("prepare"):
        world.rank_zero_first("prepare the data", lambda: settled.append(_settle(config, run)))
    # Rank 0's view of the disk is everybody's: a stale directory entry must not give one rank another data set.
    stores, split = world.broadcast_object(settled[0] if settled else None)
    train, validation = (
        [
            (store, case.name)
            for dataset, store in zip(run.datasets, stores, strict=True)
            for case in getattr(dataset, part)
            if case.name in store.cases
        ]
        for part in ("training", "validation")
    )
    cases = [*train, *(case for case in validation if case not in train)]
    if world.is_rank_zero and config.pretrain is None:
        records = [store.cases[name] for store, name in cases]
        if lost := lost_foreground_warning(records, stores[0].labels):
            log.warning("%s", lost)
    with annotate("cache"):
        cache = _load_cache(config, world, cases)
    check_augmentations(config.augment, cache.channels, config.data.patch, world.device)
    plan = SamplePlan(
        cache.plan_cases[: len(train)],
        config.augment,
        seed=config.seed,
        patch=config.data.patch,
        global_batch=config.train.global_batch,
        samples_per_volume=config.data.samples_per_volume,
        foreground=config.data.foreground,
    )
    sampler = PatchAugmenter(cache, config.augment, config.data.patch, world.device)
    validation_numbers = [cases.index(case) for case in validation]
    return TrainingData(split.channels, split.labels, split, validation_numbers, cache, plan, sampler)


def _settle(config: RunConfig, run: RunCases) -> tuple[list[Store], Split]:
    stores = _prepare_missing(run)
    split = settle_split(config, run, stores)
    log_split(run, split)
    return stores, split


def _prepare_missing(run: RunCases) -> list[Store]:
    """Prepare the cases that are not prepared yet; the store of each data set."""
    problems: list[str] = []
    stores: list[Store] = []
    for part in run.datasets:
        used = {case.name for case in part.cases}
        total = len(part.dataset.training)
        missing = total - len(part.store.cases)
        if not missing:
            stores.append(part.store)
            continue
        log.info("preparing %d of %d cases of %s", missing, total, part.dataset.name)
        with counting_progress("preparing") as progress:
            report = prepare(part.data, part.dataset, part.store, progress)
        stores.append(report.store)
        for name, reason in sorted(report.failed.items()):
            # Cases that came after the run began are not its own.
            if part.data.skip_broken or (run.recorded is not None and name not in used):
                log.warning("%s is left out: %s", name, reason)
            else:
                problems.append(f"  {name}: {reason}")
    if problems:
        raise UserError(
            [
                f"{len(problems)} cases cannot be prepared: mend them, or set data.skip_broken=true to train without"
                " them",
                *problems,
            ]
        )
    return stores


def _load_cache(config: RunConfig, world: World, cases: list[tuple[Store, str]]) -> DeviceCache:
    needed = cache_bytes([store.cases[name] for store, name in cases], config.cache)
    own = torch.cuda.mem_get_info(world.device)[0] if world.device.type == "cuda" else 0
    # What is free everywhere, before anybody loads: every rank decides alike.
    everywhere = world.all_gather_object((own, available_memory_bytes()))
    accelerator_free, host_free = (min(values) for values in zip(*everywhere, strict=True))
    placement = place_cache(
        needed,
        config.cache,
        world.device,
        accelerator_free=accelerator_free,
        host_free=host_free,
        ranks_on_host=world.launch.local_world_size,
    )
    log.info("cache: %d cases on %s: %s", len(cases), placement.device, placement.reason)
    return DeviceCache(cases, config.cache, placement.device)
