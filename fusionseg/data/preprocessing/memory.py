"""Memory that the preparation of a case takes, estimated from its geometry; the refusal of a case that is too large.

The estimate is the sum of the arrays that exist at the same time, for the step that has most of them. It is an upper
bound for files of at most eight bytes a voxel: tests/data/test_worker_memory.py compares it with the peak of a process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from nibabel.orientations import io_orientation

from fusionseg.config.data.dataset import DataConfig
from fusionseg.data.formats.geometry import Grid, voxel_sizes
from fusionseg.data.formats.image_file import VolumeError
from fusionseg.data.formats.problems import CaseError, Problem
from fusionseg.data.formats.readers import Readers
from fusionseg.utils.machine import available_memory_bytes, process_memory_bytes
from fusionseg.utils.tables import gigabytes

SLACK_BYTES = 180e6
"""Memory besides the arrays: parts of libraries that are loaded when they are used, blocks of an interpolation, and
freed memory that the allocator keeps."""
_DEFLATE_RATIO = 1032
"""Largest ratio at which gzip compresses."""
_MOST_BYTES_PER_VOXEL = 80.0
"""No case needs more for a voxel of its files, unless it is resampled, which is checked once the geometry is known."""


class MemoryNeeded(CaseError):
    """A case whose preparation needs more memory than it may take.

    Args:
        problems: one error.
        needed_bytes: the estimate.
    """

    def __init__(self, problems: Sequence[Problem], needed_bytes: float = 0.0) -> None:
        super().__init__(problems)
        self.needed_bytes = needed_bytes

    def __reduce__(self) -> tuple[type[MemoryNeeded], tuple[tuple[Problem, ...], float]]:  # type: ignore[override]
        return type(self), (self.problems, self.needed_bytes)


_own_bytes = 0.0
"""Memory of this worker process without a case; 0 in a process that does other things too."""


def note_own_bytes() -> None:
    """Note the memory that this worker process holds before its first case: the program and its libraries."""
    global _own_bytes
    _own_bytes = float(process_memory_bytes("VmRSS"))


@dataclass(frozen=True)
class MemoryLimit:
    """The memory that one process may take for a case, the program included in a worker process.

    Args:
        bytes: the limit; None is the memory that is free when a case is checked.
        key: the setting that the limit comes from, for the message; empty if it is the free memory.
    """

    bytes: float | None = None
    key: str = ""

    def check_files(self, files: Sequence[Path], config: DataConfig, channels: int, readers: Readers) -> None:
        """Refuse an image that is too large, before its voxels are read.

        Args:
            files: of the image.
            config: the section `data`.
            channels: number of channels.
            readers: of the data set.

        Raises:
            MemoryNeeded: the case needs more than the limit.
        """
        if self.bytes is None:
            return
        compressed = sum(part.stat().st_size for path in files for part in readers.files(path) if part.is_file())
        if compressed * _DEFLATE_RATIO * _MOST_BYTES_PER_VOXEL < self.bytes - _own_bytes - SLACK_BYTES:
            return
        try:
            geometry = readers.read_geometry(files[0])
        except VolumeError:  # the reading reports it
            return
        x, y, z = geometry.shape[-3:]
        grid = Grid((x, y, z), geometry.affine)
        if grid.known:
            self.check(files[0], grid, config, channels, len(files))

    def check(self, path: Path, grid: Grid, config: DataConfig, channels: int, files: int) -> None:
        """Refuse a case that is too large.

        Args:
            path: of the image, for the message.
            grid: of the image.
            config: the section `data`.
            channels: number of channels.
            files: number of files that hold them.

        Raises:
            MemoryNeeded: the case needs more than the limit.
        """
        needed = _own_bytes + needed_bytes(grid, config, channels, files)
        limit = available_memory_bytes() if self.bytes is None else self.bytes
        larger = resampled_voxels(grid, config) > prod(grid.shape)
        if needed <= limit or (self.bytes is None and not larger):  # an image that was read and stays is no surprise
            return
        what = f"resampling to data.spacing {list(config.spacing or ())}" if larger else "the preparation"
        allowed = f"{gigabytes(limit)} are free" if not self.key else f"{self.key} allows {gigabytes(limit)}"
        more = f"raise {self.key}" if self.key else "use a machine with more memory"
        raise MemoryNeeded(
            [
                Problem(
                    "error",
                    "",
                    str(path),
                    "memory",
                    f"{what} takes about {gigabytes(needed)}, and {allowed}",
                    f"correct the spacing in the header, choose a coarser data.spacing, or {more}",
                )
            ],
            needed,
        )


def needed_bytes(grid: Grid, config: DataConfig, channels: int, files: int) -> float:
    """Estimate the largest memory of the preparation of a case, without the program itself.

    Args:
        grid: of the image.
        config: the section `data`.
        channels: number of channels.
        files: number of files that hold them.
    """
    voxels, after = float(prod(grid.shape)), resampled_voxels(grid, config)
    image, result = 4 * channels * voxels, 4 * channels * after
    # A file: compressed parts and their sum, or stored numbers and scaled ones. At most 8 bytes a number.
    reading = image + 16 * voxels * (channels if files == 1 else 1)
    turning = 2 * image + 2 * voxels
    aligned = np.count_nonzero(grid.affine[:3, :3]) == 3
    resampling = image + result + voxels + after + (0 if aligned else 2 * image)
    # Values in float64, and the temporaries of their mean, deviation and percentiles.
    normalising = 2 * result + (34 * after if config.intensity.modes & {"zscore", "rescale"} else 2 * after)
    transforming = 4 * result + 12 * after if config.transforms else 0.0
    storing = 1.5 * result + 10 * after
    return max(reading, turning, resampling, normalising, transforming, storing) + SLACK_BYTES


def resampled_voxels(grid: Grid, config: DataConfig) -> float:
    """Number of voxels of a volume after the resampling and before the crop.

    Args:
        grid: of the file.
        config: the section `data`.
    """
    if config.spacing is None:
        return float(prod(grid.shape))
    # The axes of the file that become x, y, z; data.orientation always names them in this order.
    axes = np.argsort(io_orientation(grid.affine)[:, 0]) if config.orientation else np.arange(3)
    extent = np.array(grid.shape) * voxel_sizes(grid.affine)
    return float(np.prod(extent[axes] / config.spacing))
