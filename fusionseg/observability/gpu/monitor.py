"""GPU monitor: a background thread that samples the counters of GPUs at a fixed interval."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from fusionseg.observability.gpu.nvml import Gpu, GpuLost, NoReading, NvmlError, driver_gone
from fusionseg.observability.gpu.samples import GpuCsv, Sample
from fusionseg.observability.gpu.summary import GpuTotals
from fusionseg.observability.gpu.visible_gpus import Nvml
from fusionseg.utils.errors import UserError

log = logging.getLogger("fusionseg")

STOP_TIMEOUT_S = 2.0
"""Longest time that `stop` waits for a sample in progress. A call to a failing GPU can block for much longer."""
MAX_EMPTY_ROUNDS = 3
"""Consecutive rounds without any counter of any GPU after which the driver is considered gone."""


class GpuMonitor:
    """Sample GPUs in a background thread. An error in the thread gives a warning and never reaches the training.

    Also a context manager, which logs a warning if the monitor cannot start.
    """

    def __init__(
        self,
        path: Path | None,
        uuids: Sequence[str] | None = None,
        interval_s: float = 1.0,
        on_sample: Callable[[Sequence[Sample]], None] | None = None,
    ) -> None:
        """Args:
        path: path of gpu.csv; rows are appended. None writes no file.
        uuids: UUIDs of the GPUs as torch or NVML gives them; None takes those of CUDA_VISIBLE_DEVICES.
        interval_s: seconds between two samples.
        on_sample: called in the thread after each round, with one sample of each GPU.
        """
        self.path = path
        self.interval_s = interval_s
        self._uuids = uuids
        self._on_sample = on_sample
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._totals: dict[str, GpuTotals] = {}

    @property
    def is_running(self) -> bool:
        """True while the thread takes samples. The thread also ends by itself if the driver or all GPUs are lost."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> str | None:
        """Start the thread.

        Returns:
            None if the monitor runs, otherwise the reason in one line.
        """
        if self.is_running:
            return None
        try:
            nvml = Nvml()
        except NvmlError as error:
            return str(error)
        try:
            gpus = nvml.gpus(self._uuids)
            table = GpuCsv(self.path) if self.path is not None else None
        except (NvmlError, UserError) as error:
            nvml.close()
            return str(error)
        except OSError as error:
            nvml.close()
            return self._unwritable(error)
        self._totals = {gpu.uuid: GpuTotals(gpu.uuid, gpu.index, gpu.name) for gpu in gpus}
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, args=(nvml, gpus, table), name="gpu-monitor", daemon=True)
        self._thread.start()
        return None

    def reset(self) -> None:
        """Restart the summary, so that it excludes what happened before, such as loading data."""
        with self._lock:
            for totals in self._totals.values():
                totals.reset()

    def stop(self) -> dict[str, Any]:
        """Stop the thread and return the summary. Calling it twice, or without `start`, is allowed.

        Returns:
            `interval_s`, and `gpus` with the result of `GpuTotals.summary` for each GPU; JSON values only.
        """
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(STOP_TIMEOUT_S)
            if self._thread.is_alive():
                log.warning("the GPU monitor still waits for the answer of a GPU: look at nvidia-smi and dmesg")
        with self._lock:
            gpus = [totals.summary() for totals in self._totals.values()]
        return {"interval_s": self.interval_s, "gpus": gpus}

    def __enter__(self) -> GpuMonitor:
        if (reason := self.start()) is not None:
            log.warning("no GPU monitor: %s", reason)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self, nvml: Nvml, gpus: list[Gpu], table: GpuCsv | None) -> None:
        try:
            due, empty_rounds = time.monotonic(), 0
            while gpus and not self._stopping.wait(max(0.0, due - time.monotonic())):
                samples, driver_error = self._sample_all(gpus)
                if samples and table is not None:
                    self._write(table, samples)
                if samples and self._on_sample is not None:
                    self._on_sample(samples)
                empty_rounds = empty_rounds + 1 if gpus and not samples else 0
                if empty_rounds == MAX_EMPTY_ROUNDS:
                    driver_error = driver_gone("no GPU gives any counter")
                if driver_error is not None:
                    raise driver_error
                due = next_sample_time(due, time.monotonic(), self.interval_s)
            if not gpus:
                log.warning("the GPU monitor stops: all its GPUs are lost")
        except (NvmlError, UserError) as error:
            log.warning("the GPU monitor stops: %s", error)
        except Exception as error:  # includes errors of on_sample: a monitor must never stop a training
            log.warning("the GPU monitor stops: %s: %s", type(error).__name__, error)
        finally:
            nvml.close()
            if table is not None:
                with suppress(OSError):  # the warning about a full disk was printed above
                    table.close()

    def _write(self, table: GpuCsv, samples: Sequence[Sample]) -> None:
        try:
            table.write(samples)
        except OSError as error:
            raise UserError(self._unwritable(error)) from None

    def _unwritable(self, error: OSError) -> str:
        return f"{self.path}: cannot be written: {error.strerror or error}"

    def _sample_all(self, gpus: list[Gpu]) -> tuple[list[Sample], NvmlError | None]:
        """Sample each GPU and add the sample to its totals.

        Args:
            gpus: a lost GPU is removed from this list.

        Returns:
            The samples, and the error if the driver is gone.
        """
        samples: list[Sample] = []
        for gpu in list(gpus):
            try:
                sample = gpu.sample()
            except GpuLost as error:
                gpus.remove(gpu)
                self._totals[gpu.uuid].is_lost = True
                log.warning(
                    "GPU %s (%s) is lost (%s): look for Xid in dmesg, then have the GPU reset or the node rebooted",
                    gpu.index,
                    gpu.uuid,
                    error,
                )
                continue
            except NoReading:
                continue
            except NvmlError as error:
                return samples, error
            samples.append(sample)
            with self._lock:
                self._totals[gpu.uuid].add(sample)
        return samples, None


def next_sample_time(due: float, now: float, interval_s: float) -> float:
    """Time of the next sample. Times are multiples of the interval after the first sample, so they do not drift.

    Samples that a slow one delayed past their time are skipped.

    Args:
        due: time at which the last sample was due, in seconds.
        now: present time, in seconds.
        interval_s: seconds between two samples.
    """
    return due + interval_s * max(1, math.ceil((now - due) / interval_s))
