"""The share of the other ranks in a divided checkpoint: each writes its part when rank 0 says so."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from torch import Tensor

from fusionseg.runs.divided.messages import (
    CLOSED,
    POLL_S,
    Messages,
    answer_key,
    failed_text,
    order_key,
    written_text,
)
from fusionseg.runs.divided.part_file import write_part
from fusionseg.runs.host_copy import HostBuffers, HostCopy
from fusionseg.runs.paths import part_name


class PartWriter:
    """Writes the parts of a rank other than rank 0, in a thread beside the training steps.

    The copy of the parts stays until rank 0 closes the checkpoint: what a disk refuses is written again.

    Args:
        folder: the `checkpoints/` folder.
        messages: to rank 0.
        waiting: makes a context in which this rank does nothing but wait for rank 0.
    """

    def __init__(self, folder: Path, messages: Messages, waiting: Callable[[], AbstractContextManager[None]]) -> None:
        self.folder = folder
        self._messages = messages
        self._waiting = waiting
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._buffers = HostBuffers()
        self._writing: Future[None] | None = None
        self._ended = threading.Event()
        self._begun = 0

    def save(self, parts: dict[str, Tensor]) -> None:
        """Queue a copy of the parts of this rank, and return. Rank 0 begins the checkpoint by `DividedWriter.begin`.

        Args:
            parts: by name, on any device.
        """
        self.settle()
        number, self._begun = self._begun, self._begun + 1
        self._writing = self._thread.submit(self._follow, number, self._buffers.copy(parts))

    def settle(self) -> None:
        """Wait until rank 0 has closed the checkpoint before: it is on disk, or rank 0 replaces it.

        Raises:
            RuntimeError: the parts could not be copied.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            with self._waiting():
                writing.result()

    def close(self, patience_s: float) -> None:
        """End the thread. Orders are followed for so many seconds.

        Args:
            patience_s: the seconds.
        """
        if self._writing is not None:
            with self._waiting():
                wait([self._writing], patience_s)
        self._ended.set()

    def _follow(self, number: int, copy: HostCopy) -> None:
        """Follow the orders of rank 0 for a checkpoint."""
        order = 0
        with suppress(ConnectionError):  # rank 0 has gone: the training of this rank finds out by itself
            while not self._ended.is_set():
                text = self._messages.receive(order_key(number, order), POLL_S)
                if text is None:
                    continue
                if text == CLOSED:
                    return
                self._messages.send(answer_key(number, order, self._messages.rank), self._write(text, copy))
                order += 1

    def _write(self, folder: str, copy: HostCopy) -> str:
        """Write the part; return the answer to the order."""
        try:
            return written_text(write_part(self.folder / folder / part_name(self._messages.rank), copy.wait()))
        except (OSError, RuntimeError) as error:
            return failed_text(error)
