"""The share of the cases that one of several processes predicts: ranks of torchrun and srun, tasks of a SLURM array."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fusionseg.data.formats.case import Case
from fusionseg.data.formats.image_file import VolumeError
from fusionseg.data.formats.readers import Readers
from fusionseg.distributed.launch import Launch, read_launch
from fusionseg.distributed.load_balancing import assign_to_ranks
from fusionseg.utils.errors import UserError

ARRAY = "array"
"""Value of `--part` for the task of a SLURM array."""
_ARRAY_VARIABLES = tuple(f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "COUNT", "MIN", "MAX"))


@dataclass(frozen=True)
class Share:
    """The share of one process. Every process computes the same division, as long as the inputs stay the same."""

    index: int = 0
    count: int = 1
    launch: Launch = field(default_factory=Launch)
    """Of this process. Its local rank chooses the GPU."""

    def of(self, cases: Sequence[Case], readers: Readers) -> tuple[Case, ...]:
        """The cases of this share, in their order. The shares have about the same size in bytes.

        Args:
            cases: all cases.
            readers: of their images.
        """
        if self.count == 1:
            return tuple(cases)
        sizes = {index: _bytes_of(case.images, readers) for index, case in enumerate(cases)}
        return tuple(cases[index] for index in assign_to_ranks(sizes, self.count)[self.index])

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"


def read_share(part: str | None, environ: Mapping[str, str]) -> Share:
    """Find the share of this process.

    Args:
        part: the value of `--part`: "2/8", `ARRAY`, or None for all cases. The ranks of a launch divide them further.
        environ: the environment, such as `os.environ`.

    Raises:
        UserError: `part` has no valid value, or the environment is incomplete.
    """
    launch = read_launch(environ)
    index, count = (0, 1) if part is None else _array_task(environ) if part == ARRAY else _parsed(part)
    return Share(index * launch.world_size + launch.rank, count * launch.world_size, launch)


def _parsed(part: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", part)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--part: expected a part and the number of parts, such as 2/8, or {ARRAY}, got {part!r}")
    return int(found[1]) - 1, int(found[2])


def _array_task(environ: Mapping[str, str]) -> tuple[int, int]:
    """The position of this task in its SLURM array, from 0, and the number of tasks.

    Raises:
        UserError: this is no task of an array, or its IDs are not 0, 1, ... or 1, 2, ...
    """
    texts = [environ.get(name, "") for name in _ARRAY_VARIABLES]
    if not all(text.isdecimal() for text in texts):
        raise UserError(f"--part {ARRAY}: this is no task of a SLURM array (sbatch --array=0-7); give --part 2/8")
    task, count, first, last = map(int, texts)
    if last - first + 1 != count or first > 1:  # a part of an array that is repeated would be another division
        raise UserError(
            f"--part {ARRAY}: the array has {count} tasks with IDs from {first} to {last}, and not all from 0 or 1 on;"
            " to repeat single tasks, give each the part that it had, such as --part 4/8"
        )
    return task - first, count


def _bytes_of(images: Sequence[Path], readers: Readers) -> float:
    """The size of a case; at least 1, also if it cannot be read."""
    total = 1.0
    for path in images:
        with suppress(OSError, VolumeError):
            total += sum(file.stat().st_size for file in readers.files(path))
    return total
