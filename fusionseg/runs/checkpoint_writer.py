"""The writer of checkpoints: in a thread beside the training steps, each file whole or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from fusionseg.runs.host_copy import HostBuffers
from fusionseg.runs.paths import BEST, LAST, numbered_checkpoints, numbered_name
from fusionseg.utils.errors import TrainingStopped
from fusionseg.utils.files import whole_file

_Target = TypeVar("_Target")


def _ignore(value: object) -> None:
    pass


def _allow() -> None:
    pass


class CheckpointWriter:
    """The writer of a `checkpoints/` folder: step_00000500.pt ..., last.pt, best.pt.

    Saving queues a copy of the state to the host's memory and returns; on a GPU the host does not wait for the copy. A
    thread waits for it and writes it while the training goes on, one checkpoint at a time. `finish` waits until it is
    on disk.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        on_written: Callable[[float], None] = _ignore,
        *,
        check: Callable[[], None] = _allow,
        on_numbered: Callable[[Path], None] = _ignore,
    ) -> None:
        """Prepare the thread; nothing is written yet.

        Args:
            folder: the `checkpoints/` folder.
            keep: number of numbered checkpoints that stay.
            on_written: called in the caller's thread, after a checkpoint was written, with the seconds from the call
                of `save` until the file was on disk.
            check: called before each file is written; raises TrainingStopped if nothing may be written.
            on_numbered: called with each numbered checkpoint that is on disk, in the thread.
        """
        self.folder = folder
        self.keep = keep
        self._on_written = on_written
        self._check = check
        self._on_numbered = on_numbered
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")  # Python waits for it when it ends
        self._writing: Future[float] | None = None
        self._buffers = HostBuffers()

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save a numbered checkpoint, link last.pt to it, and delete the numbered ones beyond `keep`.

        Args:
            step: number of steps that were trained.
            state: the content of the checkpoint; tensors may be on any device.

        Raises:
            TrainingStopped: the checkpoint before this one could not be written, or `check` refuses this one.
        """
        self._start(self._write_numbered, step, state)

    def save_best(self, state: dict[str, Any]) -> None:
        """Save best.pt.

        Args:
            state: the weights, and what is needed to use them.

        Raises:
            TrainingStopped: the checkpoint before this one could not be written, or `check` refuses this one.
        """
        self._start(self._write, self.folder / BEST, state)

    def finish(self) -> None:
        """Wait until everything that was saved is on disk.

        Raises:
            TrainingStopped: a checkpoint could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            self._on_written(writing.result())
        except (OSError, RuntimeError) as error:  # torch turns errors of the system into RuntimeErrors
            self._check()  # the folder was removed while the file was written
            reason = str(error).partition("\n")[0]
            raise TrainingStopped(
                f"{self.folder}: a checkpoint could not be written ({reason}): free space on the disk, and start the"
                f" run again: it goes on from {self._newest()}"
            ) from error

    def delete_after(self, step: int) -> None:
        """Delete the numbered checkpoints after a step. Call it when nothing is being written.

        Args:
            step: number of steps that were trained.

        Raises:
            TrainingStopped: `check` refuses it: the folder may be another process's.
        """
        self._check()
        for saved, path in numbered_checkpoints(self.folder):
            if saved > step:
                path.unlink()

    def check(self) -> None:
        """Call `finish` if the thread has ended. This method never waits.

        Raises:
            TrainingStopped: a checkpoint could not be written.
        """
        if self._writing is not None and self._writing.done():
            self.finish()

    def _newest(self) -> str:
        return next((path.name for _, path in numbered_checkpoints(self.folder)), "its beginning")

    def _start(self, write: Callable[[_Target, dict[str, Any]], None], target: _Target, state: dict[str, Any]) -> None:
        self.finish()  # there is one copy of the state in memory at a time
        self._check()
        start = time.monotonic()
        copied = self._buffers.copy(state)

        def work() -> float:
            write(target, copied.wait())
            return time.monotonic() - start

        self._writing = self._thread.submit(work)

    def _write_numbered(self, step: int, state: dict[str, Any]) -> None:
        path = self.folder / numbered_name(step)
        self._write(path, state)
        self._on_numbered(path)
        with whole_file(self.folder / LAST) as temporary:
            try:
                os.link(path, temporary)
            except OSError:  # a file system without hard links
                temporary.write_bytes(path.read_bytes())
        for _, old in numbered_checkpoints(self.folder)[self.keep :]:
            old.unlink()

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        self._check()  # again: the checkpoint before this one may have taken long
        with whole_file(path) as temporary:
            torch.save(state, temporary)
