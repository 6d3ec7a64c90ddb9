"""One file of a case: read it, check its geometry, and find its position relative to the case's other files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.formats.geometry import KEEP, SAME_GRID_VOXELS, Grid, Turn, find_margins, find_turn
from fusionseg.data.formats.image_file import FileGeometry, VolumeError
from fusionseg.data.formats.problems import Findings
from fusionseg.data.formats.readers import Readers


@dataclass(frozen=True)
class CaseFile:
    """The content of one file of a case.

    Args:
        voxels: (X, Y, Z), or (C, X, Y, Z) for a file with several channels.
        grid: of the voxels in space.
        stored_type: data type of the stored numbers, for reports.
        partial: True for a label that may cover a part of the image's grid.
    """

    voxels: NDArray[Any]
    grid: Grid
    stored_type: str
    partial: bool = False


def read_file(path: Path, readers: Readers, findings: Findings, kind: Literal["image", "label"]) -> CaseFile | None:
    """Read a file and note its problems.

    Returns:
        None if the file cannot be read or has an impossible number of dimensions.
    """
    try:
        content = readers.read(path)
    except VolumeError as error:
        findings.add("error", path, error.code, f"cannot be read: {error.message}", error.remedy)
        return None
    except MemoryError:
        findings.add("error", path, "memory", "does not fit into memory", "check its size, or use fewer workers")
        return None
    geometry = FileGeometry(content.voxels.shape, content.affine, content.problems)
    grid = _grid_of(path, geometry, findings, kind)
    return None if grid is None else CaseFile(content.voxels, grid, content.stored_type, content.partial)


def read_file_grid(path: Path, readers: Readers, findings: Findings) -> Grid | None:
    """Read the grid of an image file, without its voxels where the reader can, and note its problems."""
    try:
        geometry = readers.read_geometry(path)
    except VolumeError as error:
        findings.add("error", path, error.code, f"cannot be read: {error.message}", error.remedy)
        return None
    return _grid_of(path, geometry, findings, "image")


def extend_to_grid(file: CaseFile, grid: Grid) -> CaseFile:
    """Extend a label that covers a part of its image's grid by background, in the voxel order of its file.

    Args:
        file: the label.
        grid: of the image.

    Returns:
        The label on the whole grid; or the label as it is, if it is whole, or if its voxels are not voxels of the grid.
    """
    if not (file.partial and file.grid.known and grid.known and file.voxels.ndim == 3):
        return file
    margins = find_margins(file.grid, grid)
    if margins is None or not any(any(pair) for pair in margins):
        return file
    affine = file.grid.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ [before for before, _ in margins]
    voxels = np.pad(file.voxels, margins)
    x, y, z = voxels.shape
    return CaseFile(voxels, Grid((x, y, z), affine), file.stored_type)


def find_position(
    path: Path, own: Grid, grid: Grid, image: Path | None, kind: Literal["channel", "label"], findings: Findings
) -> Turn | None:
    """Find the turn that brings a file to the grid of the case's image, and note differences of the two.

    Args:
        path: the file.
        own: its grid.
        grid: of the image.
        image: the first channel's file, for messages about another channel; None for a label.
        kind: the file's purpose.
        findings: gets the problems.

    Returns:
        None, with an error among the findings, if no turn leads to the image's grid.
    """
    name, reference = ("image", "the image") if image is None else (image.name, image.name)
    if not (own.known and grid.known):  # an error is noted already; the voxels can still be checked
        return KEEP if own.shape == grid.shape else None
    turn, voxels, mm = find_turn(own, grid)
    if turn is None and own.shape != grid.shape:
        findings.add(
            "error",
            path,
            f"{kind}-shape",
            f"{name} {grid.shape} and {kind} {own.shape} differ in shape",
            "resample it to the image's grid, or fetch the matching file",
        )
    elif turn is None:
        findings.add(
            "error",
            path,
            f"{kind}-affine",
            f"the {kind} lies {mm:.3g} mm ({voxels:.3g} voxels) away from {reference} at a corner",
            "resample it to the image's grid; copy the image's affine if only the header is wrong",
        )
    elif voxels > SAME_GRID_VOXELS:
        findings.add(
            "warning",
            path,
            f"{kind}-affine",
            f"the {kind} lies {mm:.3g} mm ({voxels:.3g} voxels) away from {reference} at a corner",
            "copy the image's affine; the difference is too small to matter, and is ignored",
        )
    if turn is not None and turn != KEEP:
        findings.add(
            "warning",
            path,
            f"{kind}-order",
            f"the {kind} is stored as {own.orientation}, and {reference} as {grid.orientation}",
            "nothing: it is turned to the image's voxel order, which is exact",
        )
    return turn


def report_dimensions(findings: Findings, path: Path, shape: tuple[int, ...], kind: str) -> None:
    """Note a file that is not a 3D volume, nor a 4D one where that is allowed.

    Args:
        findings: gets the error.
        path: the file.
        shape: its shape, the channels first.
        kind: the purpose: image, channel, label, or array for an image that is in memory.
    """
    remedies = {
        "label": "store it as one 3D volume",
        "channel": "store each channel as a 3D volume",
        "array": "give (X, Y, Z), or (C, X, Y, Z) with the channels first",
    }
    remedy = remedies.get(kind, "store 3D volumes, or one 4D file with several channels")
    findings.add("error", path, "dimensions", f"the {kind} is {len(shape)}D {tuple(map(int, shape))}", remedy)


def _grid_of(path: Path, geometry: FileGeometry, findings: Findings, kind: str) -> Grid | None:
    if len(geometry.shape) not in (3, 4):
        report_dimensions(findings, path, geometry.shape, kind)
        return None
    for problem in geometry.problems:
        findings.add(problem.severity, path, problem.code, problem.message, problem.remedy)
    x, y, z = map(int, geometry.shape[-3:])
    return Grid((x, y, z), geometry.affine)
