"""One file of a case: read, its geometry checked, and its place among the case's other files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from fusionseg.data.formats.geometry import KEEP, SAME_GRID_VOXELS, Grid, Turn, find_turn, grid_of
from fusionseg.data.formats.nifti import VolumeError, read_header, read_volume
from fusionseg.data.formats.problems import Findings, Severity


@dataclass(frozen=True)
class File:
    """One file: values as nibabel gives them, without trailing axes of one voxel beyond the third."""

    values: NDArray[Any]
    grid: Grid
    header: Any
    dtype: str


def read_file(path: Path, findings: Findings, what: Literal["image", "label"]) -> File | None:
    """Read a file and note its problems; None where nothing further can be looked at."""
    try:
        volume = read_volume(path)
    except VolumeError as error:
        findings.add("error", path, error.code, f"cannot be read: {error.message}", error.remedy)
        return None
    except MemoryError:
        findings.add("error", path, "memory", "does not fit into memory", "check its size, or use fewer workers")
        return None
    shape = _without_trailing_ones(volume.values.shape)
    if len(shape) not in (3, 4):
        report_dimensions(findings, path, shape, what)
        return None
    x, y, z = shape[:3]
    grid = grid_of(volume.header, (x, y, z), _reporter(findings, path))
    return File(volume.values.reshape(shape, order="F"), grid, volume.header, volume.dtype)


def read_file_grid(path: Path, findings: Findings) -> Grid | None:
    """Read the grid of an image file from its header, and note the problems of that."""
    try:
        raw = read_header(path)
    except VolumeError as error:
        findings.add("error", path, error.code, f"cannot be read: {error.message}", error.remedy)
        return None
    shape = _without_trailing_ones(raw.shape)
    if len(shape) not in (3, 4):
        report_dimensions(findings, path, shape, "image")
        return None
    x, y, z = shape[:3]
    return grid_of(raw.header, (x, y, z), _reporter(findings, path))


def place(
    path: Path, own: Grid, grid: Grid, image: Path | None, what: Literal["channel", "label"], findings: Findings
) -> Turn | None:
    """The turn of a file to the grid of the case's image; None, with an error, where there is none."""
    name, the = ("image", "the image") if image is None else (image.name, image.name)
    if not (own.known and grid.known):  # an error has said so; the voxels can still be looked at
        return KEEP if own.shape == grid.shape else None
    turn, voxels, mm = find_turn(own, grid)
    if turn is None and own.shape != grid.shape:
        findings.add(
            "error",
            path,
            f"{what}-shape",
            f"{name} {grid.shape} and {what} {own.shape} differ in shape",
            "resample it to the image's grid, or fetch the matching file",
        )
    elif turn is None:
        findings.add(
            "error",
            path,
            f"{what}-affine",
            f"the {what} lies {mm:.3g} mm ({voxels:.3g} voxels) away from {the} at a corner",
            "resample it to the image's grid; copy the image's affine if only the header is wrong",
        )
    elif voxels > SAME_GRID_VOXELS:
        findings.add(
            "warning",
            path,
            f"{what}-affine",
            f"the {what} lies {mm:.3g} mm ({voxels:.3g} voxels) away from {the} at a corner",
            "copy the image's affine; the difference is too small to matter, and is ignored",
        )
    if turn is not None and turn != KEEP:
        findings.add(
            "warning",
            path,
            f"{what}-order",
            f"the {what} is stored as {own.orientation}, and {the} as {grid.orientation}",
            "nothing: it is turned to the image's voxel order, which is exact",
        )
    return turn


def _reporter(findings: Findings, path: Path) -> Callable[[Severity, str, str, str], None]:
    def report(severity: Severity, code: str, message: str, remedy: str) -> None:
        findings.add(severity, path, code, message, remedy)

    return report


def report_dimensions(findings: Findings, path: Path, shape: tuple[int, ...], what: str) -> None:
    """Note a file that is no 3D volume, nor a 4D one where that is allowed."""
    remedies = {"label": "store it as one 3D volume", "channel": "store each channel as a 3D volume"}
    remedy = remedies.get(what, "store 3D volumes, or one 4D file with the channels last")
    findings.add("error", path, "dimensions", f"the {what} is {len(shape)}D {tuple(map(int, shape))}", remedy)


def _without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return tuple(map(int, shape))
