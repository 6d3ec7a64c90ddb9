"""The memory of a cache: what it needs, what there is, and what the configuration allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fusionseg.config.data.cache import CacheConfig
from fusionseg.utils.errors import UserError
from fusionseg.utils.tables import counted

GB = 1e9
SMALLER = (
    "train on smaller volumes (data.crop_foreground, data.spacing), set cache.dtype: float16,"
    " or raise cache.memory_fraction"
)
Memory = Literal["accelerator", "host", "disk"]


@dataclass(frozen=True)
class Placement:
    """The memory of the cache, and the reason for the choice in words, for a message."""

    memory: Memory
    device: torch.device
    """Device of the volumes; that of the host for a cache on disk."""
    reason: str
    table: tuple[str, ...] = ()
    """Lines of a table of the memories that were considered, in their order, and what became of each."""


@dataclass(frozen=True)
class _Candidate:
    """A memory that may hold the cache."""

    memory: Memory
    name: str
    needed: int
    free: int
    fits: bool
    text: str
    """The numbers in words."""


def place_cache(
    needed: int,
    config: CacheConfig,
    training_device: torch.device,
    *,
    accelerator_free: int,
    host_free: int,
    ranks_on_host: int = 1,
    shared: bool = False,
    disk: bool = True,
) -> Placement:
    """Choose the memory that holds the cache: the first that has room, of those that `cache.device` allows.

    Args:
        needed: bytes for one rank.
        config: the section `cache`.
        training_device: of this rank.
        accelerator_free: free bytes of the training device.
        host_free: free bytes of the host.
        ranks_on_host: number of ranks that share the host's memory.
        shared: the ranks of a host share one cache there; otherwise each has its own.
        disk: the cases may stay on disk.

    Raises:
        UserError: the cache does not fit in any memory that `cache.device` allows.
    """
    accelerated = training_device.type != "cpu"
    if config.device == "accelerator" and not accelerated:
        raise UserError("cache.device: is accelerator, but this run trains on the CPU; set it to auto or host")
    if config.device == "disk":
        return Placement("disk", torch.device("cpu"), "read ahead, as cache.device says")
    candidates = []
    if accelerated and config.device != "host":
        candidates.append(_on_accelerator(needed, config, training_device, accelerator_free))
    if config.device != "accelerator":
        candidates.append(_on_host(needed, config, host_free, ranks_on_host, shared))
    chosen = next((one for one in candidates if one.fits), None)
    to_disk = disk and config.device == "auto" and chosen is None
    table = _table(candidates, chosen, config, disk=to_disk)
    if to_disk:
        reason = f"read ahead, because {' and '.join(one.text for one in candidates)} are too little"
        return Placement("disk", torch.device("cpu"), reason, table)
    if chosen is None:
        raise UserError(_refusal(candidates, config, disk=disk))
    reason = chosen.text
    if chosen is not candidates[0]:
        reason = f"falls back to the host, because it needs {candidates[0].text}; {reason}"
    device = training_device if chosen.memory == "accelerator" else torch.device("cpu")
    return Placement(chosen.memory, device, reason, table)


def _on_accelerator(needed: int, config: CacheConfig, device: torch.device, free: int) -> _Candidate:
    text = f"{needed / GB:.2f} GB of {free / GB:.1f} GB free on {device}, {_share(config)}"
    return _Candidate("accelerator", str(device), needed, free, needed <= free * config.memory_fraction, text)


def _on_host(needed: int, config: CacheConfig, free: int, ranks: int, shared: bool) -> _Candidate:
    needed = needed if shared else needed * ranks
    text = (
        f"{needed / GB:.2f} GB {'shared by' if shared else 'for'} {counted(ranks, 'rank')} of"
        f" {free / GB:.1f} GB host memory free, {_share(config)}"
    )
    return _Candidate("host", "host", needed, free, needed <= free * config.memory_fraction, text)


def _share(config: CacheConfig) -> str:
    return f"{config.memory_fraction:.3g} of it (cache.memory_fraction) allowed"


def _refusal(candidates: Sequence[_Candidate], config: CacheConfig, *, disk: bool) -> str:
    on_disk = "set cache.device: disk, " if disk else ""
    if config.device == "accelerator":
        return (
            f"cache.device: does not fit the accelerator ({candidates[0].text}); set it to auto to use the host, or"
            f" {SMALLER}"
        )
    host = candidates[-1].text
    also = f"neither on the device ({candidates[0].text}) nor " if len(candidates) > 1 else ""
    return f"cache: does not fit, {also}on the host ({host}); {on_disk}{SMALLER}"


def _table(
    candidates: Sequence[_Candidate], chosen: _Candidate | None, config: CacheConfig, *, disk: bool
) -> tuple[str, ...]:
    """The memories up to the chosen one, with what the cache needs there and what is allowed."""
    lines = [f"{'memory':<10} {'needed':>10} {'free':>10} {'allowed':>10}"]
    for one in candidates:
        sizes = (one.needed, one.free, one.free * config.memory_fraction)
        row = " ".join(f"{size / GB:>7.2f} GB" for size in sizes)
        lines.append(f"{one.name:<10} {row}  {'chosen' if one is chosen else 'too little'}")
        if one is chosen:
            break
    if disk:
        lines.append(f"{'disk':<10} {'-':>10} {'-':>10} {'-':>10}  chosen, read ahead")
    return tuple(lines)
