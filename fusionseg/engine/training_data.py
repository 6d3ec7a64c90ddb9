"""From a configuration to the cache, the plan and the sampler of a run."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from fusionseg.config import RunConfig
from fusionseg.data.cache import DeviceCache, cache_bytes, place_cache
from fusionseg.data.dataset import Case
from fusionseg.data.lost_foreground import lost_foreground_warning
from fusionseg.data.plan import SamplePlan
from fusionseg.data.prepare import open_store, prepare
from fusionseg.data.sampler import PatchSampler
from fusionseg.data.store import Store
from fusionseg.data.unread import unlabelled_cases
from fusionseg.engine.distributed import World
from fusionseg.engine.sources import Source, open_sources
from fusionseg.errors import UserError
from fusionseg.machine import available_memory_bytes
from fusionseg.telemetry.progress import counting_progress
from fusionseg.telemetry.ranges import annotate

log = logging.getLogger("fusionseg")


@dataclass
class TrainingData:
    """What the training loop draws its batches from."""

    channels: tuple[str, ...]
    labels: dict[int, str]
    """Value -> name, of the (first) data set."""
    num_train: int
    cache: DeviceCache
    plan: SamplePlan
    sampler: PatchSampler
    content: str
    """A hash of the names and the contents of all cases."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the foreground classes 1, 2, ..."""
        return tuple(self.labels[value] for value in sorted(self.labels) if value != 0)

    @property
    def validation_numbers(self) -> list[int]:
        """Case numbers within the cache."""
        return list(range(self.num_train, len(self.cache)))

    def batch(self, step: int, indices: range) -> tuple[Tensor, Tensor]:
        """Samples `indices` of `step`, on the training device."""
        return self.sampler(self.plan.samples(step, indices))


def open_training_data(config: RunConfig, world: World) -> TrainingData:
    """Prepare what is not prepared yet, and load the cache.

    Raises:
        UserError: cases cannot be prepared, or the cache fits nowhere.
    """
    sources = open_sources(config)
    if world.is_main:
        for part in sources:
            unlabelled = unlabelled_cases(part.dataset.training) if config.pretrain is None else []
            for note in (*part.dataset.notes, *unlabelled):
                log.warning("%s", note)
    with annotate("prepare"):
        world.main_first("prepare the data", lambda: _prepare_missing(sources))
    # Rank 0's view of the disk is everybody's: a stale directory entry must not give one rank another data set.
    opened = world.from_main([open_store(part.config, part.dataset) for part in sources] if world.is_main else None)
    for store, missing in opened:
        if missing and not config.data.skip_broken:
            raise UserError(f"{store.root}: {', '.join(missing)} vanished after the preparation: start again")
    stores = [store for store, _ in opened]
    train = [case for part, store in zip(sources, stores, strict=True) for case in _present(part.train, store)]
    validation = [
        case for part, store in zip(sources, stores, strict=True) for case in _present(part.validation, store)
    ]
    for purpose, cases in (("train", train), ("validate", validation)):
        if not cases:
            raise UserError(f"data.fold {config.data.fold}: no case is left to {purpose} on")
    if world.is_main and config.pretrain is None:
        records = [store.cases[name] for store, name in train + validation]
        if lost := lost_foreground_warning(records, stores[0].labels):
            log.warning("%s", lost)
    with annotate("cache"):
        cache = _load_cache(config, world, train + validation)
    plan = SamplePlan(
        cache.index[: len(train)],
        config.augment,
        seed=config.seed,
        patch=config.data.patch,
        global_batch=config.train.global_batch,
        samples_per_volume=config.data.samples_per_volume,
        foreground=config.data.foreground,
    )
    sampler = PatchSampler(cache, config.augment, config.data.patch, world.device)
    contents = "".join(name + record.content for name, record in zip(cache.names, cache.records, strict=True))
    content = hashlib.sha256(contents.encode()).hexdigest()[:16]
    return TrainingData(stores[0].channels, stores[0].labels, len(train), cache, plan, sampler, content)


def _present(cases: list[Case], store: Store) -> list[tuple[Store, str]]:
    return [(store, case.name) for case in cases if case.name in store.cases]


def _prepare_missing(sources: list[Source]) -> None:
    problems = []
    for part in sources:
        _, missing = open_store(part.config, part.dataset)
        if not missing:
            continue
        log.info("preparing %d of %d cases of %s", len(missing), len(part.dataset.training), part.dataset.name)
        with counting_progress("preparing") as progress:
            report = prepare(part.config, part.dataset, progress)
        for name, reason in sorted(report.failed.items()):
            if part.config.data.skip_broken:
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


def _load_cache(config: RunConfig, world: World, cases: list[tuple[Store, str]]) -> DeviceCache:
    needed = cache_bytes([store.cases[name] for store, name in cases], config.cache)
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
    log.info("cache: %d cases on %s: %s", len(cases), placement.device, placement.reason)
    return DeviceCache(cases, config.cache, placement.device)
