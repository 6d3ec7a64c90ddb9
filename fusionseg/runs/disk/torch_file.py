"""Files of `torch.save`, with the errors of the system as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fusionseg.utils.files import write_all


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
