"""The records of a run, in `metrics.jsonl`: one JSON object a line, with `kind` and `step`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

from fusionseg.runs.json_files import JsonObject, finite_or_none, is_number, read_lines, read_regular, sift_lines
from fusionseg.runs.paths import RunPaths
from fusionseg.utils.errors import TrainingStopped, UserError
from fusionseg.utils.files import write_text

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

    A record that cannot be written ends the training, which can be resumed.
    """

    def __init__(self, run: Path) -> None:
        """Open the file to append to it.

        Args:
            run: the run folder; it is made if it does not exist.
        """
        run.mkdir(parents=True, exist_ok=True)
        self._path = RunPaths(run).metrics
        self._file = self._path.open("ab", buffering=0)

    def write(self, kind: RecordKind, step: int, **fields: Any) -> Record:
        """Append a record. The file holds it when this method returns.

        Returns:
            The record as written: nan and infinity are None.

        Raises:
            TrainingStopped: the file cannot be written.
        """
        record = {"kind": kind, "step": step, **finite_or_none(fields)}
        with self._stopping():
            self._append((json.dumps(record) + "\n").encode())
        return record

    def sync(self) -> None:
        """Force the records to disk.

        Raises:
            TrainingStopped: the disk cannot take them.
        """
        with self._stopping():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _append(self, line: bytes) -> None:
        """Write a line whole or not at all."""
        end = os.fstat(self._file.fileno()).st_size
        left = line
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            with suppress(OSError):
                self._file.truncate(end)
            raise

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingStopped(
                f"{self._path}: a record could not be written ({error.strerror}); free some disk space and start the"
                " run again: it resumes from its last checkpoint"
            ) from error


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
