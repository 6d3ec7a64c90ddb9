"""Running totals over the samples of a GPU, so that a summary needs no stored samples."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fusionseg.observability.gpu.samples import Sample

MEANS = (
    "busy_percent",
    "memory_busy_percent",
    "power_w",
    "sm_clock_mhz",
    "pcie_tx_mb_per_s",
    "pcie_rx_mb_per_s",
    "nvlink_tx_mb_per_s",
    "nvlink_rx_mb_per_s",
)
PEAKS = ("memory_used_gb", "temperature_c")
LAST = ("memory_total_gb", "power_limit_w")
ECC = ("corrected", "uncorrected")


class GpuTotals:
    """Totals of one GPU since the start or the last `reset`."""

    def __init__(self, uuid: str, index: str, name: str) -> None:
        """Args:
        uuid: UUID as NVML writes it.
        index: NVML index, `card:instance` for a MIG instance.
        name: product name.
        """
        self.uuid, self.index, self.name = uuid, index, name
        self.is_lost = False
        self._ecc_before: dict[str, int] = {}
        self._ecc: dict[str, int] = {}
        self.reset()

    def reset(self) -> None:
        """Restart the totals. New memory errors are counted from the last sample on."""
        self.samples = 0
        self._sums: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._peaks: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._throttled: Counter[str] = Counter()
        self._ecc_before = dict(self._ecc)

    def add(self, sample: Sample) -> None:
        """Add one sample to the totals."""
        self.samples += 1
        for name in MEANS:
            value = getattr(sample, name)
            if value is not None:
                self._sums[name] += value
                self._counts[name] += 1
        for name in PEAKS:
            value = getattr(sample, name)
            if value is not None:
                self._peaks[name] = max(value, self._peaks.get(name, value))
        for name in LAST:
            value = getattr(sample, name)
            if value is not None:
                self._last[name] = value
        if sample.throttle is not None:
            self._counts["throttle"] += 1
            self._throttled.update(sample.throttle)
        for name in ECC:
            count = getattr(sample, f"ecc_{name}")
            if count is not None:
                self._ecc_before.setdefault(name, count)
                self._ecc[name] = count

    def summary(self) -> dict[str, Any]:
        """Summarise the samples as JSON values.

        Returns:
            Means by field of `Sample`; maxima of memory_used_gb and temperature_c; `throttled`, the share of samples by
            throttle reason; `ecc`, memory errors in total and new ones. None is unknown.
        """
        means = {name: self._sums[name] / self._counts[name] if self._counts[name] else None for name in MEANS}
        identity = {"uuid": self.uuid, "index": self.index, "name": self.name, "samples": self.samples}
        values = {
            **means,
            **{name: self._peaks.get(name) for name in PEAKS},
            **{name: self._last.get(name) for name in LAST},
        }
        with_reasons = self._counts["throttle"]
        return {
            **identity,
            "lost": self.is_lost,
            **{name: None if value is None else round(value, 3) for name, value in values.items()},
            "throttled": {name: round(count / with_reasons, 4) for name, count in sorted(self._throttled.items())},
            "ecc": {
                **{name: self._ecc.get(name) for name in ECC},
                **{
                    f"new_{name}": self._ecc[name] - self._ecc_before[name] if name in self._ecc else None
                    for name in ECC
                },
            },
        }
