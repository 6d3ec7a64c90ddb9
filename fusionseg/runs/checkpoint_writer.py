"""The writer of checkpoints: in a thread beside the training steps, each file whole or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fusionseg.runs.disk.failures import DiskFailures
from fusionseg.runs.host_copy import HostBuffers, HostCopy
from fusionseg.runs.paths import BEST, LAST, numbered_checkpoints, numbered_name
from fusionseg.utils.files import PARTIAL, whole_file, write_all


def _ignore(value: object) -> None:
    pass


def _allow() -> None:
    pass


def _yes() -> bool:
    return True


@dataclass(eq=False)
class _Unwritten:
    """A checkpoint that is not on disk yet."""

    write: Callable[[dict[str, Any]], None]
    copy: HostCopy
    buffers: HostBuffers
    """They hold the copy."""
    began: float


class CheckpointWriter:
    """The writer of a `checkpoints/` folder: step_00000500.pt ..., last.pt, best.pt.

    Saving queues a copy of the state to the host's memory and returns; on a GPU the host does not wait for the copy. A
    thread waits for it and writes it while the training goes on, one checkpoint at a time. `finish` waits until it is
    on disk.

    A checkpoint that the disk refuses stays in memory, and `check` tries it again after a pause, until a newer one of
    its kind replaces it. best.pt is written before a numbered checkpoint, whose history knows of it: after a kill the
    two agree.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        on_written: Callable[[float], None] = _ignore,
        *,
        check: Callable[[], None] = _allow,
        on_numbered: Callable[[Path], None] = _ignore,
        failures: DiskFailures | None = None,
    ) -> None:
        """Prepare the thread; nothing is written yet.

        Args:
            folder: the `checkpoints/` folder.
            keep: number of numbered checkpoints that stay.
            on_written: called in the caller's thread, after a checkpoint was written, with the seconds from the call
                of `save` until the file was on disk.
            check: called before each file is written; raises TrainingStopped if nothing may be written.
            on_numbered: called with each numbered checkpoint that is on disk, in the thread.
            failures: the failed writes of the run; None gives up at the first one.
        """
        self.folder = folder
        self.keep = keep
        self.failures = DiskFailures(0.0) if failures is None else failures
        self.failures.newest = self._newest
        self.write_records: Callable[[], bool] = _yes
        """Writes the records to disk, and tells whether they are there: they come before their checkpoint."""
        self._on_written = on_written
        self._check = check
        self._on_numbered = on_numbered
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")  # Python waits for it when it ends
        self._writing: Future[None] | None = None
        self._unwritten: dict[str, _Unwritten] = {}
        """By kind. The thread takes out what it has written; this thread changes it while the other one rests."""
        self._took: list[float] = []
        self._free: list[HostBuffers] = []

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save a numbered checkpoint, link last.pt to it, and delete the numbered ones beyond `keep`.

        Args:
            step: number of steps that were trained.
            state: the content of the checkpoint; tensors may be on any device.

        Raises:
            TrainingStopped: `check` refuses it.
        """
        path = self.folder / numbered_name(step)
        self._start(LAST, lambda content: self._write_numbered(path, content), state)

    def save_best(self, state: dict[str, Any]) -> None:
        """Save best.pt.

        Args:
            state: the weights, and what is needed to use them.

        Raises:
            TrainingStopped: `check` refuses it.
        """
        path = self.folder / BEST
        self._start(BEST, lambda content: self._write(path, content), state)

    def finish(self, patience_s: float | None = None) -> None:
        """Wait until everything that was saved is on disk.

        Args:
            patience_s: seconds for which a failed write is tried again; None tries until the run gives up.

        Raises:
            TrainingStopped: a checkpoint could not be written.
        """

        def attempt() -> bool:
            self._submit()
            self._collect()
            return not self._unwritten

        self._collect()
        if self._unwritten:
            self.failures.keep_trying(attempt, patience_s)

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
        """Note what the thread has done, and try failed writes again if they are due. This method never waits.

        Raises:
            TrainingStopped: the folder is no longer that of the run.
        """
        if self._writing is not None and self._writing.done():
            self._collect()
        # A checkpoint may wait although nothing fails any more: another file's write was the one that worked again.
        waits = bool(self._unwritten) and not self.failures.failing
        if self._writing is None and (waits or self.failures.is_due):
            self._submit()

    def _newest(self) -> str:
        with suppress(OSError):
            return next((path.name for _, path in numbered_checkpoints(self.folder)), "its beginning")
        return "its newest checkpoint"

    def _start(self, kind: str, write: Callable[[dict[str, Any]], None], state: dict[str, Any]) -> None:
        self._collect()  # one file is written at a time
        self._check()
        began = time.monotonic()
        replaced = self._unwritten.pop(kind, None)
        if replaced is not None:
            self._free.append(replaced.buffers)
        buffers = self._free.pop() if self._free else HostBuffers()
        self._unwritten[kind] = _Unwritten(write, buffers.copy(state), buffers, began)
        if not self.failures.failing or self.failures.is_due:
            self._submit()

    def _submit(self) -> None:
        """Let the thread write what is not on disk, after the records."""
        if self.failures.failing:
            self._remove_left_over()
        if self.write_records() and self._unwritten:
            self._writing = self._thread.submit(self._write_all)

    def _write_all(self) -> None:
        for kind in (BEST, LAST):
            if (each := self._unwritten.get(kind)) is not None:
                each.write(each.copy.wait())
                self._took.append(time.monotonic() - each.began)
                del self._unwritten[kind]
                self._free = [each.buffers]  # the memory of one copy stays

    def _collect(self) -> None:
        """Wait for the thread, and note what it has done."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
            self.failures.worked(self.folder)
        except OSError as error:
            self._check()  # the folder was removed while the file was written
            self.failures.failed(self.folder, "a checkpoint", error)
        for seconds in self._took:
            self._on_written(seconds)
        self._took.clear()

    def _write_numbered(self, path: Path, content: dict[str, Any]) -> None:
        self._write(path, content)
        with whole_file(self.folder / LAST) as temporary:
            try:
                os.link(path, temporary)
            except OSError:  # a file system without hard links
                temporary.write_bytes(path.read_bytes())
        self._on_numbered(path)
        for _, old in numbered_checkpoints(self.folder)[self.keep :]:
            old.unlink(missing_ok=True)

    def _write(self, path: Path, content: dict[str, Any]) -> None:
        self._check()  # again: the checkpoint before this one may have taken long
        with whole_file(path) as temporary:
            write_torch(content, temporary)

    def _remove_left_over(self) -> None:
        """Remove the temporary files that a disk without room or permission has kept."""
        with suppress(OSError):
            for path in self.folder.glob(f"{PARTIAL}*"):
                path.unlink()


class _Output:
    """A file for `torch.save`, which turns the errors of the system into RuntimeErrors without their cause."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is not None:
            return 0
        content = memoryview(data).cast("B")
        try:
            write_all(self._file, content)
        except OSError as error:
            self.error = error
            return 0
        return len(content)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._file.close()


def write_torch(content: Any, path: Path) -> None:
    """Write a file with `torch.save`.

    Args:
        content: what `torch.save` takes.
        path: of the file.

    Raises:
        OSError: the system refused a write.
    """
    output = _Output(path)
    try:
        torch.save(content, output)  # type: ignore[arg-type]
    except RuntimeError:
        if output.error is None:
            raise
    finally:
        output.close()
    if output.error is not None:  # torch 2.13 does not look at the number of bytes that were written
        raise output.error
