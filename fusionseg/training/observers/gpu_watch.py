"""Monitoring of the GPUs of a run: one monitor on each node, in the first rank of the node."""

from __future__ import annotations

import logging
import socket
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fusionseg.config import RunConfig
from fusionseg.distributed.world import World
from fusionseg.observability.gpu.advice import advise
from fusionseg.observability.gpu.figure import plot_gpu_csv
from fusionseg.observability.gpu.monitor import GpuMonitor
from fusionseg.observability.gpu.samples import Sample

log = logging.getLogger("fusionseg")

CURVES = ("busy_percent", "memory_busy_percent", "memory_used_gb", "power_w", "temperature_c")


def gpu_uuid(device: torch.device) -> str | None:
    """Return the UUID of a GPU, as NVML reports it; None for the CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None


class GpuWatch:
    """Writes gpu.csv of this node (gpu_HOST.csv on nodes without rank 0); at the end a summary, a figure and advice."""

    def __init__(self, config: RunConfig, world: World, folder: Path, pictures: Path) -> None:
        """All ranks must call it.

        Args:
            config: the configuration of the run.
            world: the ranks.
            folder: the run folder, for the CSV file.
            pictures: the folder of the figure.
        """
        self.config = config
        self._lock = threading.Lock()
        self._unread: defaultdict[str, list[float]] = defaultdict(list)
        self._monitor: GpuMonitor | None = None
        host = socket.gethostname()
        everywhere = world.all_gather_object((host, gpu_uuid(world.device)))
        own = [(rank, uuid) for rank, (where, uuid) in enumerate(everywhere) if where == host]
        uuids = [uuid for _, uuid in own if uuid is not None]
        if config.log.gpu_every_s is None or not uuids or own[0][0] != world.rank:
            return
        name = "gpu" if world.is_rank_zero else f"gpu_{host}"
        self._csv, self._figure = folder / f"{name}.csv", pictures / f"{name}.png"
        self._monitor = GpuMonitor(self._csv, uuids, config.log.gpu_every_s, self._note)

    def __enter__(self) -> GpuWatch:
        if self._monitor is not None and (reason := self._monitor.start()) is not None:
            log.warning("no GPU monitor: %s", reason)
            self._monitor = None
        return self

    def __exit__(self, *error: object) -> None:
        if self._monitor is not None:
            self._monitor.stop()

    def curves(self) -> dict[str, float]:
        """Return the means since the last call, by counter and GPU, such as `busy_percent/0`."""
        with self._lock:
            unread, self._unread = self._unread, defaultdict(list)
        return {name: sum(values) / len(values) for name, values in unread.items()}

    def end(self, data_share: float | None, cache_on_host: bool) -> dict[str, Any] | None:
        """Stop the monitor, draw the figure and log advice; return the summary, or None without a monitor.

        Args:
            data_share: share of the time of the steps that was spent on data, 0 to 1; None if no step was timed.
            cache_on_host: whether the GPU reads its patches from host memory.
        """
        if self._monitor is None:
            return None
        summary = self._monitor.stop()
        micro_batch = self.config.train.micro_batch_samples
        for line in advise(summary, data_share=data_share, cache_on_host=cache_on_host, micro_batch=micro_batch):
            log.warning("%s", line)
        try:
            plot_gpu_csv(self._csv, self._figure)
        except Exception as error:  # a missing figure must not end the run
            log.warning("%s: no picture: %s", self._csv, error)
        return summary

    def _note(self, samples: Sequence[Sample]) -> None:
        """Keep the values of samples until they are read. The thread of the monitor calls it."""
        with self._lock:
            for sample in samples:
                for name in CURVES:
                    value = getattr(sample, name)
                    if value is not None:
                        self._unread[f"{name}/{sample.index}"].append(value)
