"""The cache of a run: the memory that all ranks choose for it, and its loading."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from fusionseg.config import CacheConfig
from fusionseg.data.loading.caches.case_cache import CaseCache
from fusionseg.data.loading.caches.disk_cache import DiskCache
from fusionseg.data.loading.caches.partial_cache import ShareCache
from fusionseg.data.loading.caches.placement import Placement, place_cache
from fusionseg.data.loading.caches.window_cache import WindowCache
from fusionseg.data.loading.device_cache import DeviceCache, cache_bytes, shared_bytes, voxel_bytes
from fusionseg.data.loading.sampling.case_shares import CaseShares
from fusionseg.data.loading.sampling.case_window import CaseWindow
from fusionseg.data.preprocessing.store import Store
from fusionseg.distributed.node_memory import share_memory
from fusionseg.distributed.world import World
from fusionseg.utils.machine import available_memory_bytes

log = logging.getLogger("fusionseg")


def open_cache(
    config: CacheConfig,
    world: World,
    cases: Sequence[tuple[Store, str]],
    draws: CaseShares | CaseWindow | None = None,
) -> CaseCache:
    """Load the cases into the memory that has room for them, or leave them on disk. All ranks call it.

    Args:
        config: the section `cache`.
        world: the ranks.
        cases: each by its store and its name there; their order gives the case indices.
        draws: the cases that each rank draws from; None for all. They are loaded when a step needs them.

    Raises:
        UserError: the cases fit in no memory that the configuration allows, or cannot be loaded.
    """
    records = [store.cases[name] for store, name in cases]
    memory = None
    if config.device != "disk" and draws is None:
        memory = share_memory(world, shared_bytes(records, config))
    needed = cache_bytes(records, config) if draws is None else draws.capacity * voxel_bytes(records[0], config)
    placement = _place(needed, config, world, shared=memory is not None, disk=draws is None)
    where = "disk" if placement.memory == "disk" else str(placement.device)
    held = f"{len(cases)} cases" if draws is None else draws.describe()
    log.info("cache: %s on %s: %s", held, where, placement.reason)
    if len(placement.table) > 2:  # the first memory was not chosen
        for line in placement.table:
            log.info("cache: %s", line)
    if placement.memory == "disk":
        return DiskCache(cases, config)
    if isinstance(draws, CaseWindow):
        return WindowCache(cases, config, placement.device, draws)
    if draws is not None:
        return ShareCache(cases, config, placement.device, draws, world.rank)
    if memory is None:
        return DeviceCache(cases, config, placement.device)
    return DeviceCache(cases, config, placement.device, memory.bytes, fills=memory.writes)


def _place(needed: int, config: CacheConfig, world: World, *, shared: bool, disk: bool) -> Placement:
    """Choose the memory, the same on all ranks."""
    own = torch.cuda.mem_get_info(world.device)[0] if world.device.type == "cuda" else 0
    # The ranks compare with the least memory that is free on any rank, measured before the first one loads its cache.
    everywhere = world.all_gather_object((own, available_memory_bytes()))
    accelerator_free, host_free = (min(values) for values in zip(*everywhere, strict=True))
    return place_cache(
        needed,
        config,
        world.device,
        accelerator_free=accelerator_free,
        host_free=host_free,
        ranks_on_host=world.launch.local_world_size,
        shared=shared,
        disk=disk,
    )
