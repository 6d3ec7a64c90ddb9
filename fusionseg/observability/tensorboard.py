"""TensorBoard event file. A failure to write it gives one warning and never stops a training."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger("fusionseg")


class Board:
    """TensorBoard event file of a run."""

    def __init__(self, folder: Path | None, purge_step: int) -> None:
        """Args:
        folder: folder of the event file; None writes none.
        purge_step: TensorBoard drops what earlier starts of the run logged from this step on.
        """
        self._folder = folder
        self._writer: Any = None
        if folder is None:
            return
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

        # TensorBoard writes in a thread of its own. On a full disk that thread ends with a traceback, which would hide
        # the warning below.
        self._hook = threading.excepthook
        threading.excepthook = self._ignore_write_errors
        with self._warn_once():
            self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def scalar(self, name: str, value: float, step: int) -> None:
        """Add a point to a curve."""
        if self._writer is not None:
            with self._warn_once():
                self._writer.add_scalar(name, value, step)

    def scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Add a point to each curve of a group."""
        for name, value in values.items():
            self.scalar(f"{group}/{name}", value, step)

    def record(self, record: Mapping[str, Any]) -> None:
        """Add the numeric fields of a record to curves `kind/field`, and the values of its tables to `kind/field/key`.

        Args:
            record: has `kind` and `step`, see `fusionseg.runs.records`.
        """
        for name, value in record.items():
            values = value.items() if isinstance(value, dict) else [("", value)]
            for key, point in values:
                if name not in ("kind", "step") and isinstance(point, int | float):
                    self.scalar("/".join(filter(None, (record["kind"], name, str(key)))), point, record["step"])

    def text(self, name: str, text: str, step: int) -> None:
        """Add a text (Markdown)."""
        if self._writer is not None:
            with self._warn_once():
                self._writer.add_text(name, text, step)

    def image(self, name: str, image: NDArray[np.float32], step: int) -> None:
        """Add a picture (3, H, W) in [0, 1]."""
        if self._writer is not None:
            with self._warn_once():
                self._writer.add_image(name, image, step)

    def close(self) -> None:
        """Flush and close the file."""
        if self._folder is None:
            return
        if self._writer is not None:
            with self._warn_once():
                self._writer.close()
        self._writer = None
        threading.excepthook = self._hook

    @contextmanager
    def _warn_once(self) -> Iterator[None]:
        """Turn a write error of the body into a warning, and stop writing the file."""
        try:
            yield
        except OSError as error:
            log.warning(
                "%s: the TensorBoard file can no longer be written (%s); the run continues without TensorBoard",
                self._folder,
                error.strerror or error,
            )
            writer, self._writer = self._writer, None
            if writer is not None:
                with suppress(OSError):  # closing flushes, which fails again on a full disk
                    writer.close()

    def _ignore_write_errors(self, failed: threading.ExceptHookArgs) -> None:
        if isinstance(failed.exc_value, OSError) and type(failed.thread).__module__.startswith("tensorboard"):
            return  # the next call to the writer raises the same error, and the warning is printed then
        self._hook(failed)
