"""The GPU monitor: a thread that samples the GPUs of a run, beside whatever they compute."""

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

from fusionseg.observability.gpu.csv_file import GpuCsv
from fusionseg.observability.gpu.nvml import Gpu, GpuLost, NoAnswer, NvmlError, driver_gone
from fusionseg.observability.gpu.sample import Sample
from fusionseg.observability.gpu.summary import GpuTotals
from fusionseg.observability.gpu.visible_gpus import Nvml
from fusionseg.utils.errors import UserError

log = logging.getLogger("fusionseg")

PATIENCE_S = 2.0
"""How long `stop` waits for a sample that is being taken: a failing GPU can hold a call for long."""
SILENT_ROUNDS = 3
"""So many samples in a row without a counter of any GPU, and the driver is taken to be gone."""


class GpuMonitor:
    """Samples GPUs in a thread of its own; nothing that happens in there reaches the training.

    A context manager too: it warns when it cannot run.
    """

    def __init__(
        self,
        path: Path | None,
        uuids: Sequence[str] | None = None,
        interval_s: float = 1.0,
        on_sample: Callable[[Sequence[Sample]], None] | None = None,
    ) -> None:
        """Args:
        path: gpu.csv, appended to; None writes none.
        uuids: of the GPUs, as torch gives them or as NVML does; None for those that CUDA_VISIBLE_DEVICES names.
        interval_s: seconds from sample to sample.
        on_sample: called in the thread, after each set of samples, with one of each GPU.
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
        """Whether samples are being taken; it may have ended by itself."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> str | None:
        """Begin; None if it runs, else in one line why it does not."""
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
        """Let the summary begin here: what went before, such as loading data, is no part of it."""
        with self._lock:
            for totals in self._totals.values():
                totals.reset()

    def stop(self) -> dict[str, Any]:
        """End it, in a moment, and give the summary; again, and without `start`, too.

        Returns:
            interval_s and gpus: for each GPU what GpuTotals.summary gives. All values are plain.
        """
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(PATIENCE_S)
            if self._thread.is_alive():
                log.warning("the GPU monitor still waits for a GPU to answer: look at nvidia-smi and dmesg")
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
            due, silent = time.monotonic(), 0
            while gpus and not self._stopping.wait(max(0.0, due - time.monotonic())):
                samples, gone = self._take(gpus)
                if samples and table is not None:
                    self._write(table, samples)
                if samples and self._on_sample is not None:
                    self._on_sample(samples)
                silent = silent + 1 if gpus and not samples else 0
                if silent == SILENT_ROUNDS:
                    gone = driver_gone("no GPU gives any counter")
                if gone is not None:
                    raise gone
                due = next_due(due, time.monotonic(), self.interval_s)
            if not gpus:
                log.warning("the GPU monitor ends: all its GPUs are lost")
        except (NvmlError, UserError) as error:
            log.warning("the GPU monitor ends: %s", error)
        except Exception as error:  # whatever it is, the training goes on
            log.warning("the GPU monitor ends: %s: %s", type(error).__name__, error)
        finally:
            nvml.close()
            if table is not None:
                with suppress(OSError):  # a full disk has been told of already
                    table.close()

    def _write(self, table: GpuCsv, samples: Sequence[Sample]) -> None:
        try:
            table.write(samples)
        except OSError as error:
            raise UserError(self._unwritable(error)) from None

    def _unwritable(self, error: OSError) -> str:
        return f"{self.path}: cannot be written: {error.strerror or error}"

    def _take(self, gpus: list[Gpu]) -> tuple[list[Sample], NvmlError | None]:
        """A sample of each GPU, counted in, and whether the driver went away; a lost GPU is taken off the list."""
        samples: list[Sample] = []
        for gpu in list(gpus):
            try:
                sample = gpu.sample()
            except GpuLost as error:
                gpus.remove(gpu)
                self._totals[gpu.uuid].is_lost = True
                log.warning(
                    "GPU %s (%s) answers no more (%s): look for Xid in dmesg, then have it reset, or the node rebooted",
                    gpu.index,
                    gpu.uuid,
                    error,
                )
                continue
            except NoAnswer:
                continue
            except NvmlError as error:
                return samples, error
            samples.append(sample)
            with self._lock:
                self._totals[gpu.uuid].add(sample)
        return samples, None


def next_due(due: float, now: float, interval_s: float) -> float:
    """When the sample after the one of `due` is taken: on the grid from the first on, so that it does not drift.

    What a slow sample made the thread miss is left out, not caught up with.
    """
    return due + interval_s * max(1, math.ceil((now - due) / interval_s))
