"""The TensorBoard event file of a run."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fusionseg.observability.sinks.sink import Picture, RunEnd, RunStart, Sink
from fusionseg.observability.sinks.values import best_scores, numbers_of, settings_of

GPU = "z_gpu"
"""The group of the GPUs' counters. TensorBoard sorts groups by name: `train` and `val` come first."""


class TensorBoardSink(Sink):
    """Curves, pictures, the configuration, and its settings beside the final scores (the tab HPARAMS)."""

    def __init__(self, folder: Path) -> None:
        """Args:
        folder: folder of the event file.
        """
        self._folder = folder
        self._writer: Any = None
        self._hook: Any = None
        self._success: Any = None
        """The record that the settings led to an end."""

    def start(self, run: RunStart) -> None:
        """Open the event file. TensorBoard then drops what earlier starts of the run logged after its step."""
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

        # TensorBoard writes in a thread of its own. On a full disk that thread ends with a traceback, which would hide
        # the warning about the sink.
        self._hook = threading.excepthook
        threading.excepthook = self._ignore_write_errors
        self._writer = SummaryWriter(str(self._folder), purge_step=run.step + 1)
        if run.note:
            self._writer.add_text("val/grid", run.note, run.step)
        self._writer.add_text("config", _as_code(run.config_text), run.step)
        self._add_settings(run)

    def record(self, record: Mapping[str, Any]) -> None:
        """Add the numbers of a record to curves `kind/field` and `kind/field/key`."""
        step = record["step"]
        numbers = numbers_of(record)
        if record["kind"] == "gpu":
            numbers = {f"{GPU}/{name.partition('/')[2]}": value for name, value in numbers.items()}
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def image(self, name: str, image: Picture, step: int) -> None:
        """Add a picture."""
        self._writer.add_image(name, image, step)

    def finish(self, end: RunEnd) -> None:
        """Flush and close the file."""
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                self._add_end(writer, end)
                writer.close()
        finally:
            if self._hook is not None:
                threading.excepthook, self._hook = self._hook, None
            if writer is not None:
                with suppress(OSError):  # closing flushes, which fails again on a full disk
                    writer.close()

    def _add_settings(self, run: RunStart) -> None:
        """Declare the settings as hyper-parameters, and the last and the best score as their metrics."""
        from torch.utils.tensorboard.summary import hparams

        metrics = {f"val/{name}": 0.0 for name in (run.score, f"best_{run.score}")}
        experiment, start, self._success = hparams(settings_of(run.config), metrics)
        for summary in (experiment, start):
            self._writer.file_writer.add_summary(summary)

    def _add_end(self, writer: Any, end: RunEnd) -> None:
        """Add the best score as a curve, and the end record as a text."""
        if end.record:
            step = end.record["step"]
            for name, value in best_scores(end.record).items():
                writer.add_scalar(f"val/{name}", value, step)
            lines = (f"{name}: {value}" for name, value in end.record.items() if name != "kind")
            writer.add_text("result", _as_code("\n".join(lines)), step)
        if end.is_final:
            writer.file_writer.add_summary(self._success)

    def _ignore_write_errors(self, failed: threading.ExceptHookArgs) -> None:
        if isinstance(failed.exc_value, OSError) and type(failed.thread).__module__.startswith("tensorboard"):
            return  # the next call to the writer raises the same error, which becomes the warning
        self._hook(failed)


def _as_code(text: str) -> str:
    """Markdown that shows a text as it is."""
    return "".join(f"    {line}\n" for line in text.splitlines())
