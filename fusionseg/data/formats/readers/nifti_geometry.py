"""The affine of a NIfTI header, and the faults of the header's geometry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from fusionseg.data.formats.geometry import (
    CLOSE_GRID_VOXELS,
    LARGEST_SPACING_MM,
    SMALLEST_SPACING_MM,
    corner_distance,
    is_invertible,
    voxel_sizes,
)
from fusionseg.data.formats.image_file import FileProblem, Severity
from fusionseg.data.formats.readers.affines import UNKNOWN_AFFINE, numbers, shear_problems

PIXDIM_TOLERANCE = 1e-2
"""Relative difference of pixdim and the affine's voxel sizes that gives no warning."""

_UNITS = {0: (1.0, ""), 1: (1e3, "metre"), 2: (1.0, "mm"), 3: (1e-3, "micron")}
Report = Callable[[Severity, str, str, str], None]


def affine_of(header: Any, shape: tuple[int, int, int]) -> tuple[NDArray[np.float64], tuple[FileProblem, ...]]:
    """Read the affine of a NIfTI header.

    Args:
        header: nibabel's, exactly as it is in the file.
        shape: (X, Y, Z) of the volume.

    Returns:
        The affine from voxel index to mm in RAS+, NaN where the header gives no usable one; and the faults of the
        geometry.
    """
    problems: list[FileProblem] = []

    def report(severity: Severity, code: str, message: str, remedy: str) -> None:
        problems.append(FileProblem(severity, code, message, remedy))

    affine = _affine_in_mm(header, shape, report)
    return (UNKNOWN_AFFINE if affine is None else affine), tuple(problems)


def _affine_in_mm(header: Any, shape: tuple[int, int, int], report: Report) -> NDArray[np.float64] | None:
    pixdim = np.asarray(header["pixdim"][1:4], np.float64)
    if not (np.isfinite(pixdim).all() and (pixdim > 0).all()):
        report(
            "error",
            "spacing",
            f"the voxel spacing in the header is {numbers(pixdim)}",
            "set the true spacing in the header (nibabel: header.set_zooms)",
        )
        return None
    factor, unit = _UNITS.get(int(header["xyzt_units"]) & 7, (1.0, "unknown"))
    method, affine = _best_affine(header)
    if affine is None or not is_invertible(affine):
        report(
            "error",
            "affine",
            f"the affine has no inverse or is not finite (it comes from the {method})",
            "write a valid affine (sform or qform), or convert the file from its source again",
        )
        return None
    in_file_units = affine.copy()
    affine[:3] *= factor
    sizes = voxel_sizes(affine)
    stated = f", since the header's unit is {unit}" if factor != 1 else ""
    if not (min(sizes) >= SMALLEST_SPACING_MM and max(sizes) <= LARGEST_SPACING_MM):
        report(
            "error",
            "spacing",
            f"the voxel spacing is {numbers(sizes)} mm{stated}"
            f" (expected {SMALLEST_SPACING_MM:g} to {LARGEST_SPACING_MM:g} mm)",
            "set the true spacing and unit in the header (nibabel: header.set_zooms, header.set_xyzt_units)",
        )
        return None
    if factor != 1:
        report(
            "warning",
            "units",
            f"the voxel spacing is {numbers(sizes)} mm{stated}",
            "set the unit to mm if the numbers in the header are mm (nibabel: header.set_xyzt_units('mm'))",
        )
    _compare_other_entries(header, shape, in_file_units, method, pixdim, report)
    return affine


def _best_affine(header: Any) -> tuple[str, NDArray[np.float64] | None]:
    """The name and the affine that the NIfTI standard prefers, in the header's unit; None if it cannot be computed."""
    if header["sform_code"] > 0:
        return "sform", np.asarray(header.get_sform(), np.float64)
    if header["qform_code"] > 0:
        return "qform", _qform(header)
    return "pixdim", np.asarray(header.get_base_affine(), np.float64)


def _qform(header: Any) -> NDArray[np.float64] | None:
    header = header.copy()
    if header["pixdim"][0] == 0:  # the NIfTI standard reads 0 as 1
        header["pixdim"][0] = 1
    try:
        return np.asarray(header.get_qform(), np.float64)
    except (ValueError, HeaderDataError):  # an impossible quaternion or handedness
        return None


def _compare_other_entries(
    header: Any,
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
    method: str,
    pixdim: NDArray[np.float64],
    report: Report,
) -> None:
    """Warn if entries of the header that are not used contradict the affine.

    Args:
        affine: in the header's unit.
        method: the entry that the affine comes from.
    """
    sizes = np.array(voxel_sizes(affine))
    if method == "sform" and header["qform_code"] > 0:
        qform, apart = _qform(header), None
        if qform is not None and is_invertible(qform):
            apart = corner_distance(shape, np.linalg.inv(affine) @ qform, np.eye(4), affine)
        if apart is None or apart[0] > CLOSE_GRID_VOXELS:
            difference = (
                "the qform is not valid"
                if apart is None
                else f"qform and sform differ by {apart[1]:.3g} mm at a corner"
            )
            report(
                "warning",
                "qform-sform",
                f"{difference}; the sform is used",
                "set both to the same affine (img.set_qform(img.affine))",
            )
    elif method == "sform" and np.abs(pixdim / sizes - 1).max() > PIXDIM_TOLERANCE:
        report(
            "warning",
            "pixdim",
            f"pixdim says {numbers(pixdim)} and the sform {numbers(sizes)}; the sform is used",
            "set both to the same spacing (nibabel: header.set_zooms)",
        )
    for problem in shear_problems(affine):
        report(*problem)
