"""Where the records of a run go: metrics.jsonl, TensorBoard, and pictures as PNG."""

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
    """Whether a field of a record is measured, not a function of configuration and data."""
    return field in MEASURED or field.endswith(MEASURED_SUFFIXES)


def plain(value: Any) -> Any:
    """JSON has no nan and no infinity: they become null."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


class Sinks:
    """metrics.jsonl, one object a line, TensorBoard scalars, and pictures. Only rank 0 has them open.

    Records that cannot be written end the training, which can be resumed; TensorBoard and pictures do not.
    """

    def __init__(self, metrics: Path, tensorboard: Path | None, pictures: Path, *, purge_step: int) -> None:
        """Args:
        tensorboard: folder of the event file; None for none.
        pictures: folder of the PNG files.
        purge_step: TensorBoard forgets what an earlier start logged from this step on.
        """
        metrics.parent.mkdir(parents=True, exist_ok=True)
        self._pictures: Path | None = pictures
        self._path = metrics
        self._metrics = metrics.open("ab", buffering=0)
        self._board = Board(tensorboard, purge_step) if tensorboard is not None else None

    def write(self, kind: str, step: int, **fields: Any) -> None:
        """Append one record; it is in the file when this returns.

        Raises:
            TrainingStopped: the file cannot be written.
        """
        record = {"kind": kind, "step": step, **plain(fields)}
        with self._stopping():
            self._append((json.dumps(record) + "\n").encode())
        if self._board is not None:
            for name, value in record.items():
                values = value.items() if isinstance(value, dict) else [("", value)]
                for key, number in values:
                    if name not in ("kind", "step") and isinstance(number, int | float):
                        self._board.scalar("/".join(filter(None, (kind, name, str(key)))), number, step)

    def curves(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Values for TensorBoard alone."""
        if self._board is not None:
            for name, value in values.items():
                self._board.scalar(f"{group}/{name}", value, step)

    def text(self, tag: str, text: str, step: int) -> None:
        """A text for TensorBoard alone."""
        if self._board is not None:
            self._board.text(tag, text, step)

    def sync(self) -> None:
        """Force the records to disk.

        Raises:
            TrainingStopped: the disk takes them no more.
        """
        with self._stopping():
            os.fsync(self._metrics.fileno())

    def picture(self, tag: str, image: NDArray[np.float32], step: int) -> None:
        """A picture (3, H, W) in [0, 1]: `<tag>_<step>.png`, and in TensorBoard."""
        if self._pictures is not None:
            try:
                _write_png(self._pictures / f"{tag}_{step:08d}.png", image)
            except WriteError as error:
                log.warning("%s; the run goes on without pictures", error)
                self._pictures = None
        if self._board is not None:
            self._board.image(tag, image, step)

    def close(self) -> None:
        self._metrics.close()
        if self._board is not None:
            self._board.close()

    def _append(self, line: bytes) -> None:
        """Write a line whole or not at all."""
        end = os.fstat(self._metrics.fileno()).st_size
        left = line
        try:
            while left:
                left = left[self._metrics.write(left) :]
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
                f"{self._path}: a record could not be written ({error.strerror}): see whether there is space, and start"
                " the run again: it goes on from its last checkpoint"
            ) from error


class NoSinks(Sinks):
    """For the ranks that record nothing."""

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
    from matplotlib.image import imsave  # slow to import, and most records are no pictures

    with whole_file(path) as temporary:
        imsave(temporary, np.clip(image.transpose(1, 2, 0), 0, 1))
