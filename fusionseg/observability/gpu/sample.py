"""A sample: the counters of one GPU at one time."""

from __future__ import annotations

from dataclasses import dataclass

THROTTLE_REASONS = {
    0x002: "app_clocks",
    0x004: "power",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "thermal",
    0x040: "hw_thermal",
    0x080: "power_brake",
    0x100: "display_clocks",
    0x200: "board_limit",
    0x400: "reliability",
}
"""Bits of the mask of clock event reasons; 0x001, idle, is none."""
_IDLE = 0x001


@dataclass(frozen=True, slots=True)
class Sample:
    """The counters of one GPU at one time; None is a counter that could not be read.

    The fields after `index` are, in this order, columns of gpu.csv.
    """

    uuid: str
    """As NVML writes it, with GPU- or MIG- in front."""
    index: str
    """NVML's number of the card; of a MIG instance that of the card and its own, 0:1."""
    busy_percent: float | None = None
    """Share of the last moments (up to a second) in which at least one kernel ran."""
    memory_busy_percent: float | None = None
    """The same of the memory controller: reads and writes, not how full it is."""
    memory_used_gb: float | None = None
    memory_total_gb: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    temperature_c: float | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    throttle: tuple[str, ...] | None = None
    """Why the clocks are lower than they could be: names from THROTTLE_REASONS."""
    pcie_tx_mb_per_s: float | None = None
    """Sent by the GPU, over 20 ms of the interval."""
    pcie_rx_mb_per_s: float | None = None
    nvlink_tx_mb_per_s: float | None = None
    """Data over all links, since the last sample."""
    nvlink_rx_mb_per_s: float | None = None
    ecc_corrected: int | None = None
    """Memory errors since the driver was loaded."""
    ecc_uncorrected: int | None = None
    processes: int | None = None
    """Processes that compute on it."""


def throttle_names(mask: int) -> tuple[str, ...]:
    """Short names of the bits of a mask of clock event reasons."""
    known = [name for bit, name in THROTTLE_REASONS.items() if mask & bit]
    rest = mask & ~(sum(THROTTLE_REASONS) | _IDLE)
    return (*known, "other") if rest else tuple(known)
