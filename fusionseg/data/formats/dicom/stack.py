"""The volume that slices form: their order along the normal, the affine, and the faults of their positions.

Slices are sorted by position, never by the names or the numbers of their files. The distance of the slices comes from
the positions, not from SliceThickness, which is another quantity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.formats.dicom.headers import Slice
from fusionseg.data.formats.dicom.series import Series, find_series, refuse_repeated, refuse_unreadable
from fusionseg.data.formats.geometry import CLOSE_GRID_VOXELS, LPS_TO_RAS
from fusionseg.data.formats.image_file import FETCH, VolumeError

SAME_POSITION_MM = 1e-3
SAME_DIRECTION = 1e-3
"""Largest difference of the components of two direction vectors that count as one."""
MAX_NAMED = 3


@dataclass(frozen=True)
class Stack:
    """Slices that form a volume.

    Args:
        slices: in ascending order along the normal of the slices.
        affine: 4x4, from voxel index (column, row, slice) to mm in RAS+.
    """

    slices: tuple[Slice, ...]
    affine: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(X, Y, Z): columns, rows, slices."""
        rows, columns = self.slices[0].shape
        return columns, rows, len(self.slices)


def stack_slices(series: Series) -> Stack:
    """Sort the slices of a series by position, and compute the affine.

    Args:
        series: of one volume.

    Raises:
        VolumeError: the slices form no regular grid; or the pixels are no numbers of one volume.
    """
    refuse_unreadable(series)
    slices = series.slices
    _refuse_different(slices)
    if len(slices) < 2:
        raise VolumeError("dimensions", "the series holds a single slice", "name a series with several slices")
    row, column = _directions(slices[0])
    normal = np.cross(row, column)
    heights = np.array([one.position @ normal for one in slices if one.position is not None])
    order = np.argsort(heights, kind="stable")
    ordered, heights = [slices[index] for index in order], heights[order]
    positions = int((np.diff(heights) > SAME_POSITION_MM).sum()) + 1
    if positions < len(slices):
        refuse_repeated(series, positions)
    _refuse_gaps(ordered, heights)
    places = np.array([one.position for one in ordered])
    step = (places[-1] - places[0]) / (len(ordered) - 1)
    _refuse_shifts(ordered, places, step)
    assert ordered[0].spacing is not None  # _refuse_different
    between_rows, between_columns = ordered[0].spacing
    affine = np.eye(4)
    affine[:3] = np.column_stack([row * between_columns, column * between_rows, step, places[0]])
    return Stack(tuple(ordered), LPS_TO_RAS @ affine)


def _directions(one: Slice) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors along the rows and along the columns."""
    assert one.orientation is not None
    lengths = np.linalg.norm(one.orientation, axis=1, keepdims=True)
    if not (np.abs(lengths - 1) < 0.01).all() or abs(one.orientation[0] @ one.orientation[1]) > 0.01:
        raise VolumeError(
            "affine",
            f"ImageOrientationPatient of {one.name} is {one.orientation.ravel().tolist()}"
            " (expected two unit vectors at right angles)",
            FETCH,
        )
    row, column = one.orientation / lengths
    return row, column


def _refuse_different(slices: Sequence[Slice]) -> None:
    """Refuse slices that differ in size, in pixel spacing or in orientation."""
    _refuse_kinds(slices, [f"{one.shape[1]}x{one.shape[0]}" for one in slices], "size", "dimensions")
    for one in slices:
        if one.spacing is None or min(one.spacing) <= 0:
            raise VolumeError(
                "spacing",
                f"PixelSpacing of {one.name} is {'missing' if one.spacing is None else list(one.spacing)}",
                f"{FETCH}; without it the size of a pixel is unknown",
            )
    first = slices[0]
    assert first.spacing is not None and first.orientation is not None
    spacings, orientations = [], []
    for one in slices:
        assert one.spacing is not None and one.orientation is not None  # refuse_unreadable
        same = np.allclose(one.spacing, first.spacing, rtol=1e-3)
        spacings.append(first.spacing if same else one.spacing)
        near = np.abs(one.orientation - first.orientation).max() <= SAME_DIRECTION
        orientations.append((first.orientation if near else one.orientation).round(3).ravel().tolist())
    _refuse_kinds(slices, [f"{x:g}x{y:g} mm" for y, x in spacings], "pixel spacing", "spacing")
    _refuse_kinds(slices, [str(values) for values in orientations], "orientation", "affine")


def _refuse_kinds(slices: Sequence[Slice], kinds: Sequence[str], noun: str, code: str) -> None:
    counts = Counter(kinds).most_common()
    if len(counts) > 1:
        odd = slices[kinds.index(counts[-1][0])]
        listed = ", ".join(f"{count} of {kind}" for kind, count in counts[:MAX_NAMED])
        more = ", ..." if len(counts) > MAX_NAMED else ""
        raise VolumeError(
            code,
            f"the slices differ in {noun}: {listed}{more} (such as {odd.name})",
            "remove the slices that do not belong to the volume, or export the series again",
        )


def _refuse_gaps(slices: Sequence[Slice], heights: NDArray[np.float64]) -> None:
    """Refuse slices that are missing, or whose distances vary."""
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    odd = np.flatnonzero(np.abs(gaps - usual) > CLOSE_GRID_VOXELS * usual)
    even = np.linspace(heights[0], heights[-1], len(heights))
    if not len(odd) and np.abs(heights - even).max() <= CLOSE_GRID_VOXELS * usual:
        return
    multiples = gaps[odd] / usual
    whole = len(odd) > 0 and bool((np.abs(multiples - multiples.round()) <= CLOSE_GRID_VOXELS).all())
    whole = whole and bool((multiples > 1).all())
    listed = [
        f"{gaps[index]:.4g} mm between {slices[index].name} (at {heights[index]:.6g} mm along the normal) and"
        f" {slices[index + 1].name} (at {heights[index + 1]:.6g} mm)"
        for index in odd[:MAX_NAMED]
    ]
    places = "; ".join(listed) + (f"; and {len(odd) - MAX_NAMED} more" if len(odd) > MAX_NAMED else "")
    if whole:
        missing = int(multiples.round().sum()) - len(odd)
        raise VolumeError(
            "slices",
            f"{missing} slice{'s are' if missing > 1 else ' is'} missing: the slices are {usual:.4g} mm apart, but"
            f" {places}",
            "export the series again, with all its slices",
        )
    raise VolumeError(
        "slices",
        f"the distances of the slices vary from {gaps.min():.4g} to {gaps.max():.4g} mm"
        + (f" (median {usual:.4g} mm): {places}" if listed else ""),
        "choose a reconstruction with even distances, or resample the series first (SimpleITK, 3D Slicer)",
    )


def _refuse_shifts(slices: Sequence[Slice], places: NDArray[np.float64], step: NDArray[np.float64]) -> None:
    """Refuse slices that do not lie on one line."""
    even = places[0] + np.arange(len(slices))[:, None] * step
    apart = np.linalg.norm(places - even, axis=1)
    worst = int(apart.argmax())
    assert slices[0].spacing is not None
    if apart[worst] > CLOSE_GRID_VOXELS * max(float(np.linalg.norm(step)), *slices[0].spacing):
        raise VolumeError(
            "affine",
            f"{slices[worst].name} lies {apart[worst]:.3g} mm beside the line of the other slices",
            "export the series again; parts that were scanned at different table positions are two volumes",
        )


def slice_files(folder: Path, wanted: str | None = None) -> list[Path]:
    """List the files of the one series of a folder, in the order of their positions.

    Args:
        folder: of the series.
        wanted: as for `find_series`.

    Raises:
        VolumeError: as the reader of DICOM.
    """
    return list(dict.fromkeys(one.path for one in stack_slices(find_series(folder, wanted)).slices))
