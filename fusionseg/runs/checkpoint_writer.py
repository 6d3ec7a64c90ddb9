"""The writer of checkpoints: in a thread beside the training steps, each file whole or not at all."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionseg.runs.disk.failures import DiskFailures, do_nothing
from fusionseg.runs.disk.torch_file import write_torch
from fusionseg.runs.divided.content import DividedContent
from fusionseg.runs.divided.folders import point_to, remove_checkpoint, remove_partial
from fusionseg.runs.divided.messages import POLL_S, PartError
from fusionseg.runs.divided.rank_zero import DividedCheckpoint, DividedWriter
from fusionseg.runs.host_copy import HostBuffers, HostCopy
from fusionseg.runs.paths import BEST, LAST, numbered_checkpoints, numbered_name
from fusionseg.utils.files import PARTIAL, whole_file


def _ignore(value: object) -> None:
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
    divided: DividedCheckpoint | None = None
    """The other ranks keep their parts for it until it is closed."""


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
        check: Callable[[], None] = do_nothing,
        on_numbered: Callable[[Path], None] = _ignore,
        failures: DiskFailures | None = None,
        divided: DividedWriter | None = None,
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
            divided: writes checkpoints with the other ranks; None if `save_divided` is not called.
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
        self._divided = divided
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")  # Python waits for it when it ends
        self._writing: Future[None] | None = None
        self._unwritten: dict[str, _Unwritten] = {}
        """By kind. The thread takes out what it has written; this thread changes it while the other one rests."""
        self._took: list[float] = []
        self._free: defaultdict[bool, list[HostBuffers]] = defaultdict(list)
        """Buffers that no copy needs, of divided checkpoints and of whole ones."""

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save a numbered checkpoint, link last.pt to it, and delete the numbered ones beyond `keep`.

        Args:
            step: number of steps that were trained.
            state: the content of the checkpoint; tensors may be on any device.

        Raises:
            TrainingStopped: `check` refuses it.
        """
        path = self.folder / numbered_name(step)
        self._start(LAST, lambda content: self._write_numbered(step, path, content), state)

    def save_divided(self, step: int, content: DividedContent) -> None:
        """Save a numbered checkpoint with the other ranks, point last.pt to it, and delete those beyond `keep`.

        Args:
            step: number of steps that were trained.
            content: what rank 0 saves. The other ranks save theirs by `PartWriter.save`.

        Raises:
            TrainingStopped: `check` refuses it.
        """
        assert self._divided is not None
        self.settle()
        checkpoint = self._divided.begin(step, content)

        def write(parts: dict[str, Any]) -> None:
            path = checkpoint.write(parts, self._check)
            point_to(self.folder / LAST, path)
            self._delete_old(step, path)
            if path != (path := checkpoint.take_name()):
                point_to(self.folder / LAST, path)
            self._on_numbered(path)
            checkpoint.close()

        self._start(LAST, write, content.parts, checkpoint)

    def settle(self) -> None:
        """Wait until nothing is being written, and let the other ranks leave a divided checkpoint that has failed.

        Call it before another numbered checkpoint is saved, which replaces the one that has failed.

        Raises:
            TrainingStopped: the folder is no longer that of the run.
        """
        self._collect()
        if (failed := self._unwritten.get(LAST)) is not None and failed.divided is not None:
            self._drop(LAST)

    def save_best(self, state: dict[str, Any]) -> None:
        """Save best.pt.

        Args:
            state: the weights, and what is needed to use them.

        Raises:
            TrainingStopped: `check` refuses it.
        """
        path = self.folder / BEST
        self._start(BEST, lambda content: self._write(path, content), state)

    def close(self, patience_s: float) -> None:
        """Let the other ranks leave divided checkpoints. What is being written gets some time.

        Args:
            patience_s: the seconds.
        """
        if self._divided is None:
            return
        if self._writing is not None:
            wait([self._writing], patience_s)
        self._divided.ended.set()
        if self._writing is not None:  # it notices at its next wait for a message
            wait([self._writing], 2 * POLL_S)
        for each in list(self._unwritten.values()):
            if each.divided is not None:
                each.divided.close()

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
                remove_checkpoint(path)

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

    def _start(
        self,
        kind: str,
        write: Callable[[dict[str, Any]], None],
        state: dict[str, Any],
        divided: DividedCheckpoint | None = None,
    ) -> None:
        self._collect()  # one file is written at a time
        self._check()
        began = time.monotonic()
        self._drop(kind)
        free = self._free[divided is not None]
        buffers = free.pop() if free else HostBuffers()
        self._unwritten[kind] = _Unwritten(write, buffers.copy(state), buffers, began, divided)
        if not self.failures.failing or self.failures.is_due:
            self._submit()

    def _drop(self, kind: str) -> None:
        """Forget a checkpoint that another one replaces."""
        replaced = self._unwritten.pop(kind, None)
        if replaced is None:
            return
        if replaced.divided is not None:
            replaced.divided.close()
        self._free[replaced.divided is not None].append(replaced.buffers)

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
                self._free[each.divided is not None] = [each.buffers]  # the memory of one copy stays

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
            part = f" (the part of {error.ranks})" if isinstance(error, PartError) else ""
            self.failures.failed(self.folder, f"a checkpoint{part}", error)
        for seconds in self._took:
            self._on_written(seconds)
        self._took.clear()

    def _write_numbered(self, step: int, path: Path, content: dict[str, Any]) -> None:
        self._write(path, content)
        with whole_file(self.folder / LAST) as temporary:
            try:
                os.link(path, temporary)
            except OSError:  # a file system without hard links
                temporary.write_bytes(path.read_bytes())
        self._on_numbered(path)
        self._delete_old(step, path)

    def _delete_old(self, step: int, path: Path) -> None:
        """Delete the earlier checkpoints of the step of one that is on disk, and those beyond `keep`."""
        found = numbered_checkpoints(self.folder)
        same = [old for saved, old in found if saved == step and old != path]
        others = [old for saved, old in found if saved != step or old == path]
        for old in (*same, *others[self.keep :]):
            remove_checkpoint(old)

    def _write(self, path: Path, content: dict[str, Any]) -> None:
        self._check()  # again: the checkpoint before this one may have taken long
        with whole_file(path) as temporary:
            write_torch(content, temporary)

    def _remove_left_over(self) -> None:
        """Remove the temporary files and folders that a disk without room or permission has kept."""
        with suppress(OSError):
            for path in self.folder.glob(f"{PARTIAL}*"):
                remove_partial(path)
