"""Counters of one GPU, read through NVML. Counters that the card or the driver lacks are None."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from fusionseg.observability.gpu.samples import Sample, throttle_names

# Return codes of NVML (nvml.h), grouped by their meaning for a counter.
UNAVAILABLE = frozenset({2, 3, 4, 13, 22, 25, 26})
"""The counter does not exist here: invalid argument, not supported, no permission, function not found (old driver), no
ECC on a virtual GPU, argument version mismatch, deprecated."""
GPU_LOST = frozenset({15, 16, 28})
"""The GPU fell off the bus, needs a reset, or was removed."""
DRIVER_GONE = frozenset({1, 9, 18})
"""The driver was unloaded, or replaced by another version, while the program runs."""

_ALL_LINKS = 0xFFFFFFFF


class NvmlError(Exception):
    """NVML cannot be used (any more). The message says in one line why, and what to do."""


class GpuLost(Exception):
    """The GPU does not respond, and will not respond again without a reset."""


class NoReading(Exception):
    """All counters of the GPU failed this time, for a reason that may be temporary."""


Reading = Mapping[str, Any]
Query = Callable[[Any], Reading]


class Counter:
    """A counter with the NVML functions that can read it, the newest first; the older ones serve older drivers."""

    def __init__(self, nvml: Any, handle: Any, *queries: Query) -> None:
        self._nvml = nvml
        self._handle = handle
        self._queries = list(queries)

    @property
    def is_unavailable(self) -> bool:
        """True if no function can read the counter here; it is not queried again."""
        return not self._queries

    def read(self) -> Reading | None:
        """Read the counter.

        Returns:
            The values by field of `Sample`; None if the counter is unavailable or failed this time.

        Raises:
            GpuLost: the GPU does not respond any more.
            NvmlError: the driver is gone.
        """
        while self._queries:
            try:
                return self._queries[0](self._handle)
            except self._nvml.NVMLError as error:
                if error.value in GPU_LOST:
                    raise GpuLost(str(error)) from None
                if error.value in DRIVER_GONE:
                    raise driver_gone(error) from None
                if error.value not in UNAVAILABLE:
                    return None
            except AttributeError:  # this release of nvidia-ml-py does not have the function
                pass
            self._queries.pop(0)
        return None


def driver_gone(reason: object) -> NvmlError:
    """Make the error for a driver that was unloaded or replaced."""
    return NvmlError(f"the NVIDIA driver no longer answers ({reason}): look at nvidia-smi and dmesg")


class Gpu:
    """A GPU or a MIG instance whose counters can be read."""

    def __init__(self, nvml: Any, handle: Any, uuid: str, index: str, name: str, parent: Any = None) -> None:
        """Args:
        nvml: the module pynvml.
        handle: NVML handle of the GPU or MIG instance.
        uuid: UUID as NVML writes it, with the prefix GPU- or MIG-.
        index: NVML index of the card; `card:instance` for a MIG instance.
        name: product name.
        parent: NVML handle of the card of a MIG instance; None for a whole GPU.
        """
        self.uuid, self.index, self.name = uuid, index, name
        self._nvml = nvml
        self._nvlink_before: tuple[float, int, int] | None = None
        card = handle if parent is None else parent
        self._counters = [
            Counter(nvml, handle, self._memory_v2, self._memory),
            Counter(nvml, card, self._power),
            Counter(nvml, card, self._power_limit),
            Counter(nvml, card, self._temperature_v, self._temperature),
            Counter(nvml, card, self._clocks, self._clocks_by_id),
            Counter(nvml, card, self._event_reasons, self._throttle_reasons),
            Counter(nvml, card, self._ecc_corrected),
            Counter(nvml, card, self._ecc_uncorrected),
            Counter(nvml, handle, self._processes_v3, self._processes_v2),
        ]
        if parent is None:
            # NVML has no utilisation for a MIG instance, and it counts PCIe and NVLink traffic only for the whole card.
            self._counters += [
                Counter(nvml, card, self._utilisation),
                Counter(nvml, card, self._pcie),
                Counter(nvml, card, self._nvlink),
            ]

    def sample(self) -> Sample:
        """Read all counters. This blocks for about 40 ms on cards that count PCIe traffic.

        Raises:
            GpuLost: the GPU does not respond any more.
            NoReading: no counter could be read this time.
            NvmlError: the driver is gone.
        """
        values: dict[str, Any] = {}
        failed = 0
        for counter in self._counters:
            reading = counter.read()
            if reading is not None:
                values |= reading
            elif not counter.is_unavailable:
                failed += 1
        if failed and not values:
            raise NoReading
        return Sample(self.uuid, self.index, **values)

    def _utilisation(self, handle: Any) -> Reading:
        rates = self._nvml.nvmlDeviceGetUtilizationRates(handle)
        return {"busy_percent": rates.gpu, "memory_busy_percent": rates.memory}

    def _memory_v2(self, handle: Any) -> Reading:
        return _gigabytes(self._nvml.nvmlDeviceGetMemoryInfo(handle, version=self._nvml.nvmlMemory_v2))

    def _memory(self, handle: Any) -> Reading:
        return _gigabytes(self._nvml.nvmlDeviceGetMemoryInfo(handle))

    def _power(self, handle: Any) -> Reading:
        return {"power_w": self._nvml.nvmlDeviceGetPowerUsage(handle) / 1e3}

    def _power_limit(self, handle: Any) -> Reading:
        return {"power_limit_w": self._nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3}

    def _temperature_v(self, handle: Any) -> Reading:
        return {"temperature_c": self._nvml.nvmlDeviceGetTemperatureV(handle, self._nvml.NVML_TEMPERATURE_GPU)}

    def _temperature(self, handle: Any) -> Reading:
        return {"temperature_c": self._nvml.nvmlDeviceGetTemperature(handle, self._nvml.NVML_TEMPERATURE_GPU)}

    def _clocks(self, handle: Any) -> Reading:
        nvml = self._nvml
        return {
            "sm_clock_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        }

    def _clocks_by_id(self, handle: Any) -> Reading:
        nvml = self._nvml  # for future drivers: NVIDIA has deprecated nvmlDeviceGetClockInfo
        return {
            "sm_clock_mhz": nvml.nvmlDeviceGetClock(handle, nvml.NVML_CLOCK_SM, nvml.NVML_CLOCK_ID_CURRENT),
            "memory_clock_mhz": nvml.nvmlDeviceGetClock(handle, nvml.NVML_CLOCK_MEM, nvml.NVML_CLOCK_ID_CURRENT),
        }

    def _event_reasons(self, handle: Any) -> Reading:
        return {"throttle": throttle_names(self._nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))}

    def _throttle_reasons(self, handle: Any) -> Reading:
        return {"throttle": throttle_names(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))}

    def _pcie(self, handle: Any) -> Reading:
        nvml = self._nvml
        return {
            "pcie_tx_mb_per_s": nvml.nvmlDeviceGetPcieThroughput(handle, nvml.NVML_PCIE_UTIL_TX_BYTES) / 1e3,
            "pcie_rx_mb_per_s": nvml.nvmlDeviceGetPcieThroughput(handle, nvml.NVML_PCIE_UTIL_RX_BYTES) / 1e3,
        }

    def _nvlink(self, handle: Any) -> Reading:
        """Rates from the cumulative counters (KiB). The first sample, and one after a counter reset, have none."""
        nvml = self._nvml
        fields = (nvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, nvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX)
        values = nvml.nvmlDeviceGetFieldValues(handle, [(field, _ALL_LINKS) for field in fields])
        for value in values:  # each field has its own return code
            if value.nvmlReturn:
                raise nvml.NVMLError(value.nvmlReturn)
        now, tx, rx = time.monotonic(), int(values[0].value.ullVal), int(values[1].value.ullVal)
        before, self._nvlink_before = self._nvlink_before, (now, tx, rx)
        if before is None or now <= before[0] or tx < before[1] or rx < before[2]:
            return {}
        mb_per_s = 1024 / 1e6 / (now - before[0])
        return {
            "nvlink_tx_mb_per_s": (tx - before[1]) * mb_per_s,
            "nvlink_rx_mb_per_s": (rx - before[2]) * mb_per_s,
        }

    def _ecc_corrected(self, handle: Any) -> Reading:
        return {"ecc_corrected": self._ecc(handle, self._nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED)}

    def _ecc_uncorrected(self, handle: Any) -> Reading:
        return {"ecc_uncorrected": self._ecc(handle, self._nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED)}

    def _ecc(self, handle: Any, kind: int) -> int:
        return int(self._nvml.nvmlDeviceGetTotalEccErrors(handle, kind, self._nvml.NVML_VOLATILE_ECC))

    def _processes_v3(self, handle: Any) -> Reading:
        return {"processes": len(self._nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle))}

    def _processes_v2(self, handle: Any) -> Reading:
        return {"processes": len(self._nvml.nvmlDeviceGetComputeRunningProcesses_v2(handle))}


def _gigabytes(memory: Any) -> Reading:
    return {"memory_used_gb": memory.used / 1e9, "memory_total_gb": memory.total / 1e9}
