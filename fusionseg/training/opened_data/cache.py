"""The cache of a run: the memory that all ranks choose for it, and its loading."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from fusionseg.config import CacheConfig
from fusionseg.data.loading.device_cache import DeviceCache, allocated_bytes, cache_bytes, place_cache
from fusionseg.data.preprocessing.store import Store
from fusionseg.distributed.node_memory import share_memory
from fusionseg.distributed.world import World
from fusionseg.utils.machine import available_memory_bytes

log = logging.getLogger("fusionseg")


def open_cache(config: CacheConfig, world: World, cases: Sequence[tuple[Store, str]]) -> DeviceCache:
    """Load the cases, each a store and a name in it, into the memory that has room for them."""
    records = [store.cases[name] for store, name in cases]
    needed = cache_bytes(records, config)
    own = torch.cuda.mem_get_info(world.device)[0] if world.device.type == "cuda" else 0
    # All ranks must choose the same place. So they compare with the least memory that is free on any rank, measured
    # before the first rank loads its cache.
    everywhere = world.all_gather_object((own, available_memory_bytes()))
    accelerator_free, host_free = (min(values) for values in zip(*everywhere, strict=True))
    memory = share_memory(world, allocated_bytes(records, config))
    placement = place_cache(
        needed,
        config,
        world.device,
        accelerator_free=accelerator_free,
        host_free=host_free,
        ranks_on_host=world.launch.local_world_size,
        shared=memory is not None,
    )
    log.info("cache: %d cases on %s: %s", len(cases), placement.device, placement.reason)
    if memory is None or placement.device.type != "cpu":
        return DeviceCache(cases, config, placement.device)
    return DeviceCache(cases, config, placement.device, memory.bytes, fills=memory.writes)
