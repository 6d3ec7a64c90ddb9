"""From a configuration to the cache, the plan and the sampler of a run."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from fusionseg.config import RunConfig
from fusionseg.data.cache import DeviceCache, cache_bytes, place_cache
from fusionseg.data.dataset import Case, Dataset, split_folds
from fusionseg.data.plan import SamplePlan
from fusionseg.data.prepare import open_configured, open_store, prepare
from fusionseg.data.sampler import PatchSampler
from fusionseg.data.store import Store
from fusionseg.engine.distributed import World
from fusionseg.errors import UserError
from fusionseg.machine import available_memory_bytes
from fusionseg.telemetry.progress import counting_progress

log = logging.getLogger("fusionseg")


@dataclass(frozen=True)
class Split:
    """The cases of a run, by name."""

    train: list[str]
    validation: list[str]


def split_cases(config: RunConfig, dataset: Dataset) -> tuple[list[Case], list[Case]]:
    """The labelled cases of the configured fold: training, validation."""
    labelled = [case for case in dataset.training if case.label is not None]
    if not labelled:
        raise UserError(f"{dataset.root}: has no labelled training cases: segmentation needs a label for each image")
    train, validation = split_folds(labelled, config.data.folds, config.data.fold, config.data.fold_seed)
    return train[: config.data.train_cases], validation


@dataclass
class TrainingData:
    """What the training loop draws its batches from."""

    store: Store
    split: Split
    cache: DeviceCache
    plan: SamplePlan
    sampler: PatchSampler
    content: str
    """A hash of the names and the contents of all cases."""

    @property
    def validation_numbers(self) -> list[int]:
        """Case numbers within the cache."""
        return list(range(len(self.split.train), len(self.cache)))

    def batch(self, step: int, indices: range) -> tuple[Tensor, Tensor]:
        """Samples `indices` of `step`, on the training device."""
        return self.sampler(self.plan.samples(step, indices))


def open_training_data(config: RunConfig, world: World) -> TrainingData:
    """Prepare what is not prepared yet, and load the cache.

    Raises:
        UserError: cases cannot be prepared, or the cache fits nowhere.
    """
    dataset = open_configured(config)
    train, validation = split_cases(config, dataset)
    world.main_first("prepare the data", lambda: _prepare_missing(config, dataset))
    # Rank 0's view of the disk is everybody's: a stale directory entry must not give one rank another data set.
    store, missing = world.from_main(open_store(config, dataset) if world.is_main else None)
    if missing and not config.data.skip_broken:
        raise UserError(f"{store.root}: {', '.join(missing)} vanished after the preparation: start again")
    split = Split(_present(train, store), _present(validation, store))
    for part, cases in (("train", split.train), ("validate", split.validation)):
        if not cases:
            raise UserError(f"data.fold {config.data.fold}: no case is left to {part} on")
    names = split.train + split.validation
    cache = _load_cache(config, world, store, names)
    plan = SamplePlan(
        cache.index[: len(split.train)],
        config.augment,
        seed=config.seed,
        patch=config.data.patch,
        global_batch=config.train.global_batch,
        samples_per_volume=config.data.samples_per_volume,
        foreground=config.data.foreground,
    )
    sampler = PatchSampler(cache, config.augment, config.data.patch, world.device)
    content = hashlib.sha256("".join(name + store.cases[name].content for name in names).encode()).hexdigest()[:16]
    return TrainingData(store, split, cache, plan, sampler, content)


def _present(cases: list[Case], store: Store) -> list[str]:
    return [case.name for case in cases if case.name in store.cases]


def _prepare_missing(config: RunConfig, dataset: Dataset) -> None:
    _, missing = open_store(config, dataset)
    if not missing:
        return
    log.info("preparing %d of %d cases", len(missing), len(dataset.training))
    with counting_progress("preparing") as progress:
        report = prepare(config, dataset, progress)
    if report.failed and not config.data.skip_broken:
        raise UserError(
            [
                f"{len(report.failed)} cases cannot be prepared: mend them, or set data.skip_broken=true to train"
                " without them",
                *(f"  {name}: {reason}" for name, reason in sorted(report.failed.items())),
            ]
        )
    for name, reason in sorted(report.failed.items()):
        log.warning("%s is left out: %s", name, reason)


def _load_cache(config: RunConfig, world: World, store: Store, names: list[str]) -> DeviceCache:
    needed = cache_bytes([store.cases[name] for name in names], config.cache)
    own = torch.cuda.mem_get_info(world.device)[0] if world.device.type == "cuda" else 0
    # What is free everywhere, before anybody loads: every rank decides alike.
    everywhere = world.gather((own, available_memory_bytes()))
    accelerator_free, host_free = (min(values) for values in zip(*everywhere, strict=True))
    placement = place_cache(
        needed,
        config.cache,
        world.device,
        accelerator_free=accelerator_free,
        host_free=host_free,
        ranks_on_host=world.launch.local_world_size,
    )
    log.info("cache: %d cases on %s: %s", len(names), placement.device, placement.reason)
    return DeviceCache(store, names, config.cache, placement.device)
