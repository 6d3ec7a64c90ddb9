"""Where the records of a run go: metrics.jsonl, TensorBoard, and pictures as PNG."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionseg.files import whole_file

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
    """metrics.jsonl, one object a line, TensorBoard scalars, and pictures. Only rank 0 has them open."""

    def __init__(self, metrics: Path, tensorboard: Path | None, pictures: Path, *, purge_step: int) -> None:
        """Args:
        tensorboard: folder of the event file; None for none.
        pictures: folder of the PNG files.
        purge_step: TensorBoard forgets what an earlier start logged from this step on.
        """
        metrics.parent.mkdir(parents=True, exist_ok=True)
        self._pictures = pictures
        self._metrics = metrics.open("a", encoding="utf-8")
        self._board: Any = None
        if tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(tensorboard), purge_step=purge_step)

    def write(self, kind: str, step: int, **fields: Any) -> None:
        """Append one record; it is in the file when this returns."""
        record = {"kind": kind, "step": step, **plain(fields)}
        self._metrics.write(json.dumps(record) + "\n")
        self._metrics.flush()
        if self._board is not None:
            for name, value in record.items():
                values = value.items() if isinstance(value, dict) else [("", value)]
                for key, number in values:
                    if name not in ("kind", "step") and isinstance(number, int | float):
                        self._board.add_scalar("/".join(filter(None, (kind, name, str(key)))), number, step)

    def curves(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Values for TensorBoard alone."""
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, step)

    def text(self, tag: str, text: str, step: int) -> None:
        """A text for TensorBoard alone."""
        if self._board is not None:
            self._board.add_text(tag, text, step)

    def sync(self) -> None:
        """Force the records to disk."""
        os.fsync(self._metrics.fileno())

    def picture(self, tag: str, image: NDArray[np.float32], step: int) -> None:
        """A picture (3, H, W) in [0, 1]: `<tag>_<step>.png`, and in TensorBoard."""
        _write_png(self._pictures / f"{tag}_{step:08d}.png", image)
        if self._board is not None:
            self._board.add_image(tag, image, step)

    def close(self) -> None:
        self._metrics.close()
        if self._board is not None:
            self._board.close()


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
