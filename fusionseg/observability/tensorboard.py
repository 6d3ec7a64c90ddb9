"""TensorBoard's event file, which never ends a training: when it cannot be written, one warning says so."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger("fusionseg")


class Board:
    """The event file of a run."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        """Args:
        purge_step: TensorBoard forgets what an earlier start logged from this step on.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._writer: Any = None
        # TensorBoard writes in a thread, which dies of a full disk and prints its traceback.
        self._hook = threading.excepthook
        threading.excepthook = self._quiet
        with self._one_warning():
            self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def scalar(self, name: str, value: float, step: int) -> None:
        """Add a point to a curve."""
        if self._writer is not None:
            with self._one_warning():
                self._writer.add_scalar(name, value, step)

    def text(self, name: str, text: str, step: int) -> None:
        """Add a remark, as Markdown."""
        if self._writer is not None:
            with self._one_warning():
                self._writer.add_text(name, text, step)

    def image(self, name: str, image: NDArray[np.float32], step: int) -> None:
        """Add a picture (3, H, W) in [0, 1]."""
        if self._writer is not None:
            with self._one_warning():
                self._writer.add_image(name, image, step)

    def close(self) -> None:
        """Write what is still to be written."""
        if self._writer is not None:
            with self._one_warning():
                self._writer.close()
        self._writer = None
        threading.excepthook = self._hook

    @contextmanager
    def _one_warning(self) -> Iterator[None]:
        """Pass over a file that cannot be written, and write there no more."""
        try:
            yield
        except OSError as error:
            log.warning("%s: TensorBoard's file cannot be written any more: %s", self._folder, error.strerror or error)
            writer, self._writer = self._writer, None
            if writer is not None:
                with suppress(OSError):  # it flushes what it still holds
                    writer.close()

    def _quiet(self, failed: threading.ExceptHookArgs) -> None:
        if isinstance(failed.exc_value, OSError) and type(failed.thread).__module__.startswith("tensorboard"):
            return  # told at the next call
        self._hook(failed)
