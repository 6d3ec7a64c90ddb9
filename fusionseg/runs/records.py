"""The records of a run, in `metrics.jsonl`: one JSON object a line, with `kind` and `step`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

from fusionseg.runs.disk.failures import DiskFailures, do_nothing, reason_of
from fusionseg.runs.json_files import JsonObject, finite_or_none, is_number, read_lines, read_regular, sift_lines
from fusionseg.runs.paths import RunPaths
from fusionseg.utils.errors import TrainingStopped, UserError
from fusionseg.utils.files import write_all, write_text

Record = JsonObject

MEASURED = ("time", "gpu", "mfu", "roofline", "straggler")
MEASURED_SUFFIXES = ("_s", "_per_s", "_gb")
# Readers compute with these fields of records, so their values are checked: numbers, and tables of numbers by name.
_NUMBERS = {
    "loss", "lr", "grad_norm", "skipped", "cases", "dice", "ssim", "psnr", "samples_per_s", "memory_gb", "step_s",
    "data_s", "val_s", "total_s", "mfu", "roofline",
}  # fmt: skip
_TABLES = {"dice_per_class", "phases_s"}


class RecordKind(StrEnum):
    """The kind of a record."""

    TRAIN = "train"
    VAL = "val"
    EVENT = "event"
    """Something that happened in the training, named by the field `event`."""
    END = "end"


class RunStatus(StrEnum):
    """The status of a run, as its end record states it."""

    COMPLETED = "completed"
    """All steps were trained."""
    PLATEAU = "plateau"
    """`stop.plateau` ended the training."""
    INTERRUPTED = "interrupted"
    """A signal ended this start. The run can be resumed."""
    STOPPED = "stopped"
    """`stop.at` ended this start. The run can be resumed with a later step."""
    HUNG = "hung"
    """No rank made progress, and the watchdog ended this start. The run can be resumed."""
    FAILED = "failed"
    """An error ended this start."""
    UNFINISHED = "unfinished"
    """The last record is no end record: the run is at work, or was killed."""


FINISHED = (RunStatus.COMPLETED, RunStatus.PLATEAU)


def has_finished(status: str) -> bool:
    """Tell whether nothing is left to train in a run of this status."""
    return status in FINISHED


def is_measurement(field: str) -> bool:
    """Tell whether a field of a record is measured. All other fields are functions of configuration and data."""
    return field in MEASURED or field.endswith(MEASURED_SUFFIXES)


def read_records(run: Path) -> list[Record]:
    """Read all records of a run, the oldest first; none if there is no such file.

    Args:
        run: the run folder.
    """
    return read_lines(RunPaths(run).metrics, _is_record)


def sift_records(run: Path) -> tuple[list[Record], int]:
    """Read all records of a run without a warning.

    Args:
        run: the run folder.

    Returns:
        The records, and the number of lines that are no records.
    """
    try:
        found, invalid = sift_lines(read_regular(RunPaths(run).metrics), _is_record)
    except OSError:
        return [], 0
    return found, len(invalid)


def last_records(run: Path) -> dict[str, Record]:
    """Read the last record of each kind near the end of a run's records.

    Args:
        run: the run folder.

    Returns:
        The records by kind, in the order in which they were written.
    """
    found: dict[str, Record] = {}
    for record in read_lines(RunPaths(run).metrics, _is_record, tail=True):
        found.pop(record["kind"], None)
        found[record["kind"]] = record
    return found


def last_end(run: Path) -> Record | None:
    """The end record of a run's last start; None if that start left none.

    Args:
        run: the run folder.
    """
    return end_of(last_records(run))


def end_of(found: Mapping[str, Record]) -> Record | None:
    """The end record, if it is the last of the records that `last_records` returns."""
    return found[RecordKind.END] if found and next(reversed(list(found))) == RecordKind.END else None


def rewind_records(run: Path, step: int, *, validated: int) -> None:
    """Drop the records that are later than a checkpoint. The training will write them again.

    Args:
        run: the run folder.
        step: the checkpoint's step.
        validated: the last step whose validation is part of the checkpoint. It may be earlier than `step`, because a
            checkpoint may be saved before the validation of its own step.

    Raises:
        UserError: the records cannot be read.
    """
    path = RunPaths(run).metrics
    if not path.exists():
        return
    try:
        read_regular(path)
    except OSError as error:  # what cannot be read must not be replaced by nothing
        raise UserError(f"{path}: cannot be read ({error.strerror}): repair it, or choose another name") from None
    kept = [
        record
        for record in read_records(run)
        if record["step"] <= (validated if record["kind"] == RecordKind.VAL else step)
        and record["kind"] != RecordKind.END
    ]
    write_text(path, "".join(f"{json.dumps(record)}\n" for record in kept))


class RecordWriter:
    """The writer of a run's records. Only rank 0 has one.

    Records that the disk refuses stay in memory, in their order, and are written when it takes them again. Without
    `failures`, a record that cannot be written ends the training, which can be resumed.
    """

    def __init__(self, run: Path, failures: DiskFailures | None = None, check: Callable[[], None] = do_nothing) -> None:
        """Open the file to append to it.

        Args:
            run: the run folder; it is made if it does not exist.
            failures: the failed writes of the run; None knows no second try.
            check: called before the file is opened again after a failed write; raises TrainingStopped if nothing may be
                written there any more.
        """
        run.mkdir(parents=True, exist_ok=True)
        self._run = run
        self._path = RunPaths(run).metrics
        self._file = self._path.open("ab", buffering=0)
        self._failures = failures
        self._check = check
        self._unwritten: list[bytes] = []
        self._whole = -1
        """Bytes of whole lines in the file, if a part of a line may stand behind them; otherwise -1."""

    def write(self, kind: RecordKind, step: int, **fields: Any) -> Record:
        """Append a record. The file holds it when this method returns, or it is among those that wait for the disk.

        Returns:
            The record as written: nan and infinity are None.

        Raises:
            TrainingStopped: the file cannot be written, and there is no second try.
        """
        record = {"kind": kind, "step": step, **finite_or_none(fields)}
        self._unwritten.append((json.dumps(record) + "\n").encode())
        if self._failures is None or not self._failures.is_failing(self._path) or self._failures.is_due:
            self._try(sync=False)
        return record

    def sync(self) -> bool:
        """Force the records to disk, and return whether they are there.

        Raises:
            TrainingStopped: the disk cannot take them, and there is no second try.
        """
        return self._try(sync=True)

    def rewind(self, step: int, *, validated: int) -> None:
        """Drop the records that are later than a checkpoint, as soon as the disk takes the file without them.

        Args:
            step: see `rewind_records`.
            validated: see `rewind_records`.

        Raises:
            TrainingStopped: the disk does not take it, and the run has given up.
        """
        if self._failures is None:
            rewind_records(self._run, step, validated=validated)
        else:
            self._failures.keep_trying(lambda: self.sync() and self._try_rewind(step, validated))
        self.close()
        self._file = self._path.open("ab", buffering=0)  # the file has been replaced

    def _try_rewind(self, step: int, validated: int) -> bool:
        assert self._failures is not None
        try:
            rewind_records(self._run, step, validated=validated)
        except OSError as error:  # a fault of the folder: a further record may still fit on the disk
            self._failures.failed(self._run, "the records up to a checkpoint", error)
            return False
        self._failures.worked(self._run)
        return True

    def close(self) -> None:
        with suppress(OSError):  # the disk has refused the last bytes before
            self._file.close()

    def _try(self, *, sync: bool) -> bool:
        is_failing = self._failures is not None and self._failures.is_failing(self._path)
        if is_failing:
            self._check()  # another process may have taken the folder over while its file server was away
        try:
            if is_failing:
                self._file.close()  # on NFS an open file may never work again
                # Records that were removed are not begun anew.
                self._file = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_APPEND), "ab", buffering=0)
                # A file server may take bytes and refuse them later: only records on disk end a fault.
                sync = True
            while self._unwritten:
                self._append(self._unwritten[0])
                del self._unwritten[0]
            if sync:
                os.fsync(self._file.fileno())
        except OSError as error:
            if self._failures is None:
                raise TrainingStopped(
                    f"{self._path}: a record could not be written ({reason_of(error)}); free some disk space and start"
                    " the run again: it resumes from its last checkpoint"
                ) from error
            self._failures.failed(self._path, "a record", error)
            return False
        if self._failures is not None:
            self._failures.worked(self._path)
        return True

    def _append(self, line: bytes) -> None:
        """Write a line whole or not at all."""
        handle = self._file.fileno()
        if self._whole >= 0:
            os.ftruncate(handle, self._whole)
            self._whole = -1
        end = os.fstat(handle).st_size
        try:
            write_all(self._file, line)
        except OSError:
            try:
                os.ftruncate(handle, end)
            except OSError:
                self._whole = end
            raise


def _is_record(record: Record) -> bool:
    kind = record.get("kind")
    if not isinstance(kind, str) or not _is_count(record.get("step")):
        return False
    texts = ("status", "reason") if kind == RecordKind.END else ()
    if not all(isinstance(record.setdefault(name, ""), str) for name in texts):
        return False
    for name, value in record.items():
        if (name in _NUMBERS or name.startswith("best_")) and not _is_number_or_null(value):
            return False
        if name in _TABLES and not (isinstance(value, dict) and all(map(_is_number_or_null, value.values()))):
            return False
    return True


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and is_number(value) and value >= 0


def _is_number_or_null(value: Any) -> bool:
    return value is None or is_number(value)
