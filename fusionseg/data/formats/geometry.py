"""The geometry rule of all commands: an image's grid from its header, and the test whether two files share a grid.

docs/data.md has the rule as a table. Whoever reads a file reads it by this module, so that `fusionseg check` calls
an error exactly what the other commands refuse.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

Severity = Literal["error", "warning"]
Report = Callable[[Severity, str, str, str], None]
"""Takes severity, code, message and remedy of a problem."""

SMALLEST_SPACING_MM = 1e-6
"""1 nm: electron microscopy has voxels of 4 nm, slides have pixels of 0.25 micron."""
LARGEST_SPACING_MM = 100.0
"""Ten times the thickest slices: a header that says more is wrong, or in another unit than it says."""
SAME_GRID_VOXELS = 1e-3
"""Two grids whose corners lie no further apart differ by the rounding of their headers."""
CLOSE_GRID_VOXELS = 0.1
"""Up to here the difference is harmless and worth a warning: a quaternion in float32 reaches it in a large volume."""
PIXDIM_TOLERANCE = 1e-2
SHEAR_TOLERANCE = 1e-2

_UNITS = {0: (1.0, ""), 1: (1e3, "metre"), 2: (1.0, "mm"), 3: (1e-3, "micron")}


@dataclass(frozen=True)
class Grid:
    """The voxels of a volume in space: shape (X, Y, Z), and affine 4x4 from voxel to mm (RAS).

    The affine is not a number where the header gives no usable one; that has been reported as an error then.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @property
    def known(self) -> bool:
        """Whether the affine can be used."""
        return bool(np.isfinite(self.affine).all())

    @property
    def orientation(self) -> str:
        """Directions of the voxel axes, such as RAS."""
        return "".join(axis or "?" for axis in nibabel.orientations.aff2axcodes(self.affine))


@dataclass(frozen=True)
class Turn:
    """A flip and permutation of voxel axes: axis `source[i]` becomes axis i, reversed where `flip[i]`."""

    source: tuple[int, ...]
    flip: tuple[bool, ...]

    def __call__(self, array: NDArray[Any]) -> NDArray[Any]:
        """Turn an array (X, Y, Z)."""
        turned = array.transpose(self.source)
        return turned[tuple(slice(None, None, -1 if flipped else None) for flipped in self.flip)]


KEEP = Turn((0, 1, 2), (False, False, False))


def voxel_sizes(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Lengths in mm of the three voxel axes of an affine."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(x), float(y), float(z)


def grid_of(header: Any, shape: tuple[int, int, int], report: Report) -> Grid:
    """The grid of a NIfTI file.

    Args:
        header: of nibabel, as it is in the file.
        report: receives what is wrong with the geometry.
    """
    unknown = Grid(shape, np.full((4, 4), np.nan))
    pixdim = np.asarray(header["pixdim"][1:4], np.float64)
    if not (np.isfinite(pixdim).all() and (pixdim > 0).all()):
        report(
            "error",
            "spacing",
            f"the voxel spacing in the header is {_numbers(pixdim)}",
            "set the true spacing in the header (nibabel: header.set_zooms)",
        )
        return unknown
    factor, unit = _UNITS.get(int(header["xyzt_units"]) & 7, (1.0, "unknown"))
    method, affine = _best_affine(header)
    if affine is None or not is_invertible(affine):
        report(
            "error",
            "affine",
            f"the affine has no inverse or is no number (it is from the {method})",
            "write a valid affine (sform or qform), or convert the file from its source again",
        )
        return unknown
    in_file_units = affine.copy()
    affine[:3] *= factor
    sizes = voxel_sizes(affine)
    stated = f", since the header's unit is {unit}" if factor != 1 else ""
    if not (min(sizes) >= SMALLEST_SPACING_MM and max(sizes) <= LARGEST_SPACING_MM):
        report(
            "error",
            "spacing",
            f"the voxel spacing is {_numbers(sizes)} mm{stated}"
            f" (expected {SMALLEST_SPACING_MM:g} to {LARGEST_SPACING_MM:g} mm)",
            "set the true spacing and unit in the header (nibabel: header.set_zooms, header.set_xyzt_units)",
        )
        return unknown
    if factor != 1:
        report(
            "warning",
            "units",
            f"the voxel spacing is {_numbers(sizes)} mm{stated}",
            "set the unit to mm if the numbers in the header are mm (nibabel: header.set_xyzt_units('mm'))",
        )
    _compare_with_what_does_not_count(header, shape, in_file_units, method, pixdim, report)
    return Grid(shape, affine)


def find_turn(own: Grid, wanted: Grid) -> tuple[Turn | None, float, float]:
    """The turn of voxel axes that brings one grid to another.

    Returns:
        The turn, or None where flips and permutations do not lead there; the distance of the corners after it (as
        they are stored, where there is no turn), largest of all, in voxels of `wanted` and in mm.
    """
    to_wanted = np.linalg.inv(wanted.affine) @ own.affine
    # The axis of `wanted` that each axis of `own` follows most nearly.
    targets = np.abs(to_wanted[:3, :3]).argmax(axis=0)
    plain = _corner_distance(own.shape, to_wanted, np.eye(4), wanted.affine)
    if own.shape == wanted.shape and plain[0] <= CLOSE_GRID_VOXELS:
        return KEEP, *plain
    if len(set(targets.tolist())) == 3:
        source = np.argsort(targets)
        flips = [bool(to_wanted[axis, source[axis]] < 0) for axis in range(3)]
        turned_shape = tuple(own.shape[axis] for axis in source)
        exact = np.zeros((4, 4))
        exact[3, 3] = 1
        for axis, flipped in enumerate(flips):
            exact[axis, source[axis]] = -1 if flipped else 1
            exact[axis, 3] = turned_shape[axis] - 1 if flipped else 0
        apart = _corner_distance(own.shape, to_wanted, exact, wanted.affine)
        if turned_shape == wanted.shape and apart[0] <= CLOSE_GRID_VOXELS:
            return Turn(tuple(int(axis) for axis in source), tuple(flips)), *apart
    return None, *plain


def is_invertible(affine: NDArray[np.float64]) -> bool:
    """Whether an affine leads back from mm to voxels."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-6 * lengths.prod())


def _corner_distance(
    shape: tuple[int, ...], one: NDArray[np.float64], other: NDArray[np.float64], affine: NDArray[np.float64]
) -> tuple[float, float]:
    """Largest distance of a volume's corners under two mappings: along an axis, and in mm by `affine`."""
    corners = np.array(list(itertools.product(*[(0, size - 1) for size in shape[:3]])))
    offset = corners @ (one - other)[:3, :3].T + (one - other)[:3, 3]
    return float(np.abs(offset).max()), float(np.linalg.norm(offset @ affine[:3, :3].T, axis=1).max())


def _best_affine(header: Any) -> tuple[str, NDArray[np.float64] | None]:
    """The affine that counts, in the header's unit, and its name; None where it cannot be computed."""
    if header["sform_code"] > 0:
        return "sform", np.asarray(header.get_sform(), np.float64)
    if header["qform_code"] > 0:
        return "qform", _qform(header)
    return "pixdim", np.asarray(header.get_base_affine(), np.float64)


def _qform(header: Any) -> NDArray[np.float64] | None:
    header = header.copy()
    if header["pixdim"][0] == 0:  # the NIfTI standard: 0 is to be taken as 1
        header["pixdim"][0] = 1
    try:
        return np.asarray(header.get_qform(), np.float64)
    except (ValueError, HeaderDataError):  # a quaternion or a handedness that cannot be
        return None


def _compare_with_what_does_not_count(
    header: Any,
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
    method: str,
    pixdim: NDArray[np.float64],
    report: Report,
) -> None:
    sizes = np.array(voxel_sizes(affine))
    if method == "sform" and header["qform_code"] > 0:
        qform, apart = _qform(header), None
        if qform is not None and is_invertible(qform):
            apart = _corner_distance(shape, np.linalg.inv(affine) @ qform, np.eye(4), affine)
        if apart is None or apart[0] > CLOSE_GRID_VOXELS:
            said = "the qform is none" if apart is None else f"qform and sform differ by {apart[1]:.3g} mm at a corner"
            report("warning", "qform-sform", f"{said}; the sform is used", "set both alike (img.set_qform(img.affine))")
    elif method == "sform" and np.abs(pixdim / sizes - 1).max() > PIXDIM_TOLERANCE:
        report(
            "warning",
            "pixdim",
            f"pixdim says {_numbers(pixdim)} and the sform {_numbers(sizes)}; the sform is used",
            "set both alike (nibabel: header.set_zooms)",
        )
    axes = affine[:3, :3] / sizes
    if np.abs(axes.T @ axes - np.eye(3)).max() > SHEAR_TOLERANCE:
        report(
            "warning",
            "shear",
            "the voxel axes are not at right angles; distances within the file's grid are approximate",
            "resample the volume to a rectangular grid (a tilted CT gantry leaves such files)",
        )


def _numbers(values: Any) -> str:
    return "x".join(f"{value:g}" for value in values)
