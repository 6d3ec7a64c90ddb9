"""What NVML says of one GPU: a sample of its counters, whatever the card and the driver lack."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from fusionseg.observability.gpu.sample import Sample, throttle_names

# Return values of NVML (nvml.h), by what they mean for a counter.
ABSENT = frozenset({2, 3, 4, 13, 22, 25, 26})
"""It cannot be had here: invalid argument, not supported, no permission, function not found (an old driver), no ECC
on a virtual GPU, another version of the argument, deprecated."""
LOST = frozenset({15, 16, 28})
"""The GPU fell off the bus, wants a reset, or is no longer there."""
GONE = frozenset({1, 9, 18})
"""The driver was unloaded, or replaced by another version, under the running program."""

_ALL_LINKS = 0xFFFFFFFF


class NvmlError(Exception):
    """NVML cannot be used, or no longer: the text says why, in one line, and what to do."""


class GpuLost(Exception):
    """This GPU answers no more and will not again."""


class NoAnswer(Exception):
    """All counters of this GPU failed this time, for a reason that may pass."""


Reading = Mapping[str, Any]
Question = Callable[[Any], Reading]


class Counter:
    """One thing that NVML is asked for, by the newest function first; older ones are for older drivers."""

    def __init__(self, nvml: Any, handle: Any, *questions: Question) -> None:
        self._nvml = nvml
        self._handle = handle
        self._questions = list(questions)

    @property
    def is_absent(self) -> bool:
        """Whether no function can answer it here: then it is not asked for again."""
        return not self._questions

    def ask(self) -> Reading | None:
        """The answer; None if there is none this time or ever.

        Raises:
            GpuLost, NvmlError: the GPU or the driver is gone.
        """
        while self._questions:
            try:
                return self._questions[0](self._handle)
            except self._nvml.NVMLError as error:
                if error.value in LOST:
                    raise GpuLost(str(error)) from None
                if error.value in GONE:
                    raise driver_gone(error) from None
                if error.value not in ABSENT:
                    return None
            except AttributeError:  # this release of nvidia-ml-py does not have the function
                pass
            self._questions.pop(0)
        return None


def driver_gone(reason: object) -> NvmlError:
    return NvmlError(f"the NVIDIA driver no longer answers ({reason}): look at nvidia-smi and dmesg")


class Gpu:
    """A GPU, or a MIG instance, whose counters can be read."""

    def __init__(self, nvml: Any, handle: Any, uuid: str, index: str, name: str, parent: Any = None) -> None:
        """Args:
        handle: NVML's of the device.
        parent: of a MIG instance, the handle of its card.
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
            # An instance has no utilisation, and the traffic of its card is not its own.
            self._counters += [
                Counter(nvml, card, self._utilisation),
                Counter(nvml, card, self._pcie),
                Counter(nvml, card, self._nvlink),
            ]

    def sample(self) -> Sample:
        """Read all counters, which blocks for about 40 ms where PCIe traffic is counted.

        Raises:
            GpuLost: it is gone, and asking again is of no use.
            NoAnswer: nothing could be read this time.
            NvmlError: the driver is gone.
        """
        values: dict[str, Any] = {}
        failed = 0
        for counter in self._counters:
            reading = counter.ask()
            if reading is not None:
                values |= reading
            elif not counter.is_absent:
                failed += 1
        if failed and not values:
            raise NoAnswer
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
        nvml = self._nvml  # GetClockInfo is to be removed
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
        """Rates from the cumulative counters in KiB; none in the first sample, nor after they were reset."""
        nvml = self._nvml
        fields = (nvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, nvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX)
        values = nvml.nvmlDeviceGetFieldValues(handle, [(field, _ALL_LINKS) for field in fields])
        for value in values:  # each field has a return value of its own
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
