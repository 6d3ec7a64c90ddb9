"""Destinations of the records of a run: metrics.jsonl, TensorBoard, and pictures as PNG files."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionseg.observability.tensorboard import Board
from fusionseg.utils.errors import TrainingStopped, WriteError
from fusionseg.utils.files import whole_file

log = logging.getLogger("fusionseg")

MEASURED = ("time", "gpu")
MEASURED_SUFFIXES = ("_s", "_per_s", "_gb")


def is_measurement(field: str) -> bool:
    """True for fields that are measured (times, speeds, memory); the others follow from configuration and data."""
    return field in MEASURED or field.endswith(MEASURED_SUFFIXES)


def finite_or_none(value: Any) -> Any:
    """Replace nan and infinity by None, also inside dictionaries and lists, because JSON has neither."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return value


class Sinks:
    """Writer of metrics.jsonl, TensorBoard and pictures; used on rank 0 only.

    A record that cannot be written stops the training, which can then be resumed. A TensorBoard file or a picture that
    cannot be written gives a warning.
    """

    def __init__(self, metrics: Path, tensorboard: Path | None, pictures: Path, *, purge_step: int) -> None:
        """Args:
        metrics: path of metrics.jsonl; records are appended.
        tensorboard: folder of the TensorBoard event file; None writes none.
        pictures: folder of the PNG files.
        purge_step: TensorBoard drops what earlier starts of the run logged from this step on.
        """
        metrics.parent.mkdir(parents=True, exist_ok=True)
        self._pictures: Path | None = pictures
        self._path = metrics
        self._metrics = metrics.open("ab", buffering=0)
        self._board = Board(tensorboard, purge_step) if tensorboard is not None else None

    def write(self, kind: str, step: int, **fields: Any) -> None:
        """Append one record to metrics.jsonl, and its numbers to TensorBoard.

        The record is in the file when this method returns.

        Args:
            kind: train, val, event or end.
            step: completed optimizer steps.
            fields: values of the record.

        Raises:
            TrainingStopped: the file cannot be written.
        """
        record = {"kind": kind, "step": step, **finite_or_none(fields)}
        with self._stopping():
            self._append((json.dumps(record) + "\n").encode())
        if self._board is not None:
            for name, value in record.items():
                values = value.items() if isinstance(value, dict) else [("", value)]
                for key, number in values:
                    if name not in ("kind", "step") and isinstance(number, int | float):
                        self._board.scalar("/".join(filter(None, (kind, name, str(key)))), number, step)

    def curves(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Add values to TensorBoard only, as `group/name`."""
        if self._board is not None:
            for name, value in values.items():
                self._board.scalar(f"{group}/{name}", value, step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Add a text to TensorBoard only."""
        if self._board is not None:
            self._board.text(tag, text, step)

    def sync(self) -> None:
        """Flush the records to the disk (fsync).

        Raises:
            TrainingStopped: the disk does not accept them.
        """
        with self._stopping():
            os.fsync(self._metrics.fileno())

    def picture(self, tag: str, image: NDArray[np.float32], step: int) -> None:
        """Write a picture as `<tag>_<step>.png` and to TensorBoard.

        Args:
            image: RGB in [0, 1], (3, H, W).
        """
        if self._pictures is not None:
            try:
                _write_png(self._pictures / f"{tag}_{step:08d}.png", image)
            except WriteError as error:
                log.warning("%s; the run continues without pictures", error)
                self._pictures = None
        if self._board is not None:
            self._board.image(tag, image, step)

    def close(self) -> None:
        """Close all files."""
        self._metrics.close()
        if self._board is not None:
            self._board.close()

    def _append(self, line: bytes) -> None:
        """Write a line completely or not at all."""
        end = os.fstat(self._metrics.fileno()).st_size
        rest = line
        try:
            while rest:
                rest = rest[self._metrics.write(rest) :]
        except OSError:
            with suppress(OSError):
                self._metrics.truncate(end)
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


class NoSinks(Sinks):
    """Sinks of the ranks that record nothing."""

    def __init__(self) -> None:
        pass

    def write(self, kind: str, step: int, **fields: Any) -> None:
        pass

    def curves(self, group: str, values: Mapping[str, float], step: int) -> None:
        pass

    def text(self, tag: str, text: str, step: int) -> None:
        pass

    def sync(self) -> None:
        pass

    def picture(self, tag: str, image: NDArray[np.float32], step: int) -> None:
        pass

    def close(self) -> None:
        pass


def _write_png(path: Path, image: NDArray[np.float32]) -> None:
    from matplotlib.image import imsave  # slow to import, and only needed for pictures

    with whole_file(path) as temporary:
        imsave(temporary, np.clip(image.transpose(1, 2, 0), 0, 1))
