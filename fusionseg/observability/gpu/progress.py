"""Screen output of `fusionseg monitor`: one live line on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import Progress, TextColumn

from fusionseg.observability.gpu.samples import Sample
from fusionseg.observability.progress import PLAIN_EVERY_S, LiveLine
from fusionseg.utils.logs import is_quiet


class GpuProgress(LiveLine):
    """Current counters of the GPUs. `samples` may be called from another thread."""

    def __init__(self, *, live: bool) -> None:
        """Args:
        live: True shows a live line if stderr is a terminal; False prints plain lines, beside another program.
        """
        self._printed = time.monotonic()
        if live and sys.stderr.isatty():
            self._live = Progress(TextColumn("{task.description}"), console=Console(stderr=True), transient=True)
            self._task = self._live.add_task("waiting for the GPUs", total=None)

    def samples(self, samples: Sequence[Sample]) -> None:
        """Show new samples, one of each GPU."""
        if self._live is not None:
            self._live.update(self._task, description=gpu_line(samples))
        elif not is_quiet() and time.monotonic() - self._printed >= PLAIN_EVERY_S:
            self._printed = time.monotonic()
            print(gpu_line(samples), file=sys.stderr, flush=True)


def gpu_line(samples: Sequence[Sample]) -> str:
    """Format utilisation, memory, power and temperature of the GPUs in one line; unknown values are left out."""
    parts = []
    for sample in samples:
        words = [f"GPU {sample.index}"]
        if sample.busy_percent is not None:
            words.append(f"{sample.busy_percent:.0f} %")
        if sample.memory_used_gb is not None and sample.memory_total_gb is not None:
            words.append(f"{sample.memory_used_gb:.1f}/{sample.memory_total_gb:.0f} GB")
        words += [f"{sample.power_w:.0f} W"] if sample.power_w is not None else []
        words += [f"{sample.temperature_c:.0f} °C"] if sample.temperature_c is not None else []
        parts.append(" ".join(words))
    return "  |  ".join(parts)
