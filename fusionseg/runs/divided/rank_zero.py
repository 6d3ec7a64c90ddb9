"""Rank 0's share of a divided checkpoint: it gives the orders, writes the index, and gives the folder its name."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from fusionseg.runs.divided.content import DividedContent
from fusionseg.runs.divided.folders import whole_folder
from fusionseg.runs.divided.index import write_index
from fusionseg.runs.divided.messages import CLOSED, POLL_S, Messages, PartError, answer_key, file_of, order_key
from fusionseg.runs.divided.part_file import write_part
from fusionseg.runs.json_files import JsonObject
from fusionseg.runs.paths import folder_name, free_folder, part_name


class DividedWriter:
    """Begins the divided checkpoints of a start.

    Args:
        folder: the `checkpoints/` folder.
        messages: to the other ranks.
        timeout_s: seconds that rank 0 waits for the parts of the others.
    """

    def __init__(self, folder: Path, messages: Messages, timeout_s: float) -> None:
        self.folder = folder
        self.messages = messages
        self.timeout_s = timeout_s
        self.ended = threading.Event()
        """The training ends: no rank is waited for any more."""
        self._begun = 0

    def begin(self, step: int, content: DividedContent) -> DividedCheckpoint:
        """Begin a checkpoint. The other ranks begin theirs by `PartWriter.save`, in the same order.

        Args:
            step: number of steps that were trained.
            content: what rank 0 saves.
        """
        self._begun += 1
        return DividedCheckpoint(self, self._begun - 1, step, content)


class DividedCheckpoint:
    """A checkpoint that the ranks write together; until `close` the other ranks keep their copies for it."""

    def __init__(self, writer: DividedWriter, number: int, step: int, content: DividedContent) -> None:
        self._writer = writer
        self._number = number
        self._step = step
        self._content = content
        self._orders = 0
        self._written: Path | None = None
        self._is_closed = False

    def write(self, parts: dict[str, Tensor], check: Callable[[], None]) -> Path:
        """Write the checkpoint with all ranks; return its folder. After an error it may be called again.

        Args:
            parts: the copy of the parts of rank 0.
            check: raises TrainingStopped if nothing may be written.

        Raises:
            OSError: the system refused a write of rank 0.
            PartError: that of another rank, or it did not answer.
            ConnectionError: the other ranks cannot be reached.
        """
        if self._written is not None:  # what follows on the folder has failed
            return self._written
        check()
        path = free_folder(self._writer.folder, self._step)
        with whole_folder(path) as temporary:
            order = self._order(temporary.name)
            files = {part_name(0): write_part(temporary / part_name(0), parts)}
            files |= self._answers(order)
            write_index(temporary, self._content, files)
            check()  # again: the other ranks may have taken long
        self._written = path
        return path

    def take_name(self) -> Path:
        """Give the folder the name of its step if no other checkpoint has it any more; return its path.

        Raises:
            OSError: the system refused it.
        """
        assert self._written is not None
        path = self._written.with_name(folder_name(self._step))
        if self._written != path and not path.exists():
            os.rename(self._written, path)
            self._written = path
        return self._written

    def close(self) -> None:
        """Let the other ranks leave the checkpoint: it is on disk, or another one replaces it."""
        if not self._is_closed:
            self._is_closed = True
            with suppress(ConnectionError):  # without the store, they leave by themselves
                self._order(CLOSED)

    def _order(self, text: str) -> int:
        number, self._orders = self._orders, self._orders + 1
        self._writer.messages.send(order_key(self._number, number), text)
        return number

    def _answers(self, order: int) -> dict[str, JsonObject]:
        """Wait for the other ranks; return size and hash of their files by name."""
        messages, end = self._writer.messages, time.monotonic() + self._writer.timeout_s
        files: dict[str, JsonObject] = {}
        failed: list[PartError] = []
        silent: list[int] = []
        for rank in range(1, messages.size):
            key = answer_key(self._number, order, rank)
            answer = self._answer(key, rank, end)
            if answer is None:
                silent.append(rank)
                continue
            messages.forget(key)
            try:
                files[part_name(rank)] = file_of(answer, rank)
            except PartError as error:
                failed.append(error)
        if silent:
            names = f"rank{'s' if len(silent) > 1 else ''} {', '.join(map(str, silent))}"
            seconds = f"{self._writer.timeout_s:.0f} s (distributed.timeout_s)"
            raise PartError(errno.ETIMEDOUT, f"no answer in {seconds}", names)
        if failed:
            raise PartError(failed[0].errno or errno.EIO, failed[0].strerror or "", _names(failed))
        return files

    def _answer(self, key: str, rank: int, end: float) -> str | None:
        """Wait for the answer of a rank; None after the time limit."""
        while True:
            left_s = end - time.monotonic()
            answer = self._writer.messages.receive(key, min(POLL_S, max(left_s, 0.01)))
            if answer is not None or left_s <= 0:
                return answer
            if self._writer.ended.is_set():
                raise PartError(errno.ECANCELED, "the training has ended", f"rank {rank}")


def _names(errors: list[PartError], most: int = 4) -> str:
    more = f" and {len(errors) - most} more" if len(errors) > most else ""
    return ", ".join(error.ranks for error in errors[:most]) + more
