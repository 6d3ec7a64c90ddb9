"""The reader of NRRD files, also of 3D Slicer's segmentations: .nrrd, and .nhdr with its data file.

pynrrd interprets the header. Format: https://teem.sourceforge.net/nrrd/format.html
"""

from __future__ import annotations

import bz2
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fusionseg.config.registry import readers
from fusionseg.data.formats.geometry import LPS_TO_RAS, voxel_sizes
from fusionseg.data.formats.image_file import FETCH, FileGeometry, FileProblem, ImageFile, VolumeError
from fusionseg.data.formats.readers.affines import UNKNOWN_AFFINE, checked_geometry, numbers
from fusionseg.data.formats.readers.byte_streams import data_file, file_errors, gunzip, refuse_wrong_length
from fusionseg.data.formats.readers.packages import optional_package

_TO_RAS = {
    "left-posterior-superior": LPS_TO_RAS,
    "lps": LPS_TO_RAS,
    "right-anterior-superior": np.eye(4),
    "ras": np.eye(4),
    "left-anterior-superior": np.diag([-1.0, 1.0, 1.0, 1.0]),
    "las": np.diag([-1.0, 1.0, 1.0, 1.0]),
}
_UNITS_MM = {"m": 1e3, "cm": 10.0, "mm": 1.0, "um": 1e-3, "µm": 1e-3, "micron": 1e-3, "microns": 1e-3, "nm": 1e-6}
_PARTIAL = "Segmentation_ReferenceImageExtentOffset"
"""3D Slicer states this offset for a segmentation, which it crops to the segments."""


@dataclass(frozen=True)
class NrrdHeader:
    """The header of an NRRD file.

    Args:
        fields: pynrrd's.
        dtype: of the stored numbers.
        sizes: as stored, the first axis varies fastest.
        channel_axis: the axis without a direction in space; None if there is none.
        geometry: shape and affine, as readers return them.
    """

    fields: Any
    dtype: np.dtype[Any]
    sizes: tuple[int, ...]
    channel_axis: int | None
    geometry: FileGeometry


@readers.register("nrrd")
class NrrdReader:
    """The built-in reader of NRRD."""

    suffixes = (".nrrd", ".nhdr", ".seg.nrrd")
    packages = ("nrrd",)

    def read(self, path: Path) -> ImageFile:
        """Read a file, and its data file, to the last byte.

        Args:
            path: the .nrrd or .nhdr file.

        Raises:
            VolumeError: a file is missing or damaged; or pynrrd is missing.
        """
        with file_errors(), path.open("rb") as file:
            header = _read_header(file)
            data = _data_file(path, header.fields)
            if data is None:
                stored = _read_voxels(file, header)
            else:
                try:
                    with file_errors(), data.open("rb") as other:
                        stored = _read_voxels(other, header)
                except VolumeError as error:
                    raise VolumeError(error.code, f"{data.name} beside it: {error.message}", error.remedy) from error
        if header.channel_axis is not None:
            stored = np.moveaxis(stored, header.channel_axis, 0)
        geometry = header.geometry
        voxels = stored.reshape(geometry.shape, order="F")
        partial = _PARTIAL in header.fields
        return ImageFile(voxels, geometry.affine, header.dtype.name, geometry.problems, partial)

    def read_geometry(self, path: Path) -> FileGeometry:
        """Read the header of a file.

        Args:
            path: the .nrrd or .nhdr file.

        Raises:
            VolumeError: as `read`, for faults of the header.
        """
        with file_errors(), path.open("rb") as file:
            return _read_header(file).geometry

    def is_label(self, path: Path) -> bool:
        """Test that a file is a segmentation of 3D Slicer, by its name.

        Args:
            path: the file.
        """
        return path.name.lower().endswith(".seg.nrrd")

    def files(self, path: Path) -> list[Path]:
        """The file, and its data file.

        Args:
            path: the .nrrd or .nhdr file.
        """
        try:
            with file_errors(), path.open("rb") as file:
                data = _data_file(path, _read_header(file).fields)
        except VolumeError:  # `read` reports it
            data = None
        return [path] if data is None else [path, data]


def _read_header(file: BinaryIO) -> NrrdHeader:
    nrrd = optional_package("nrrd")
    if not file.read(1):
        raise VolumeError("truncated", "it is empty", FETCH)
    file.seek(0)
    try:
        fields = nrrd.read_header(file)
        sizes = tuple(int(size) for size in fields["sizes"])
        dtype = nrrd.reader._determine_datatype(fields) if fields["type"] != "block" else np.dtype("V1")
    except (nrrd.NRRDError, KeyError, ValueError, TypeError, IndexError, StopIteration) as error:
        raise VolumeError("header", f"the NRRD header cannot be read ({error!s})", FETCH) from error
    if dtype.kind not in "iuf" or min(sizes, default=0) < 1 or len(sizes) != fields.get("dimension"):
        raise VolumeError(
            "header",
            f"it has the data type {fields['type']} of shape {sizes}, not one number per voxel",
            "convert it to integers or floats",
        )
    try:
        return _place(fields, np.dtype(dtype), sizes)
    except (ValueError, TypeError, IndexError) as error:  # a field has too few or too many entries
        raise VolumeError("header", f"the NRRD header does not fit {len(sizes)} axes ({error!s})", FETCH) from error


def _place(fields: Any, dtype: np.dtype[Any], sizes: tuple[int, ...]) -> NrrdHeader:
    """Find the axes in space, and the affine."""
    problems: list[FileProblem] = []
    directions, oriented = _directions(fields, len(sizes))
    spatial = [axis for axis in range(len(sizes)) if np.isfinite(directions[axis]).all()]
    others = [axis for axis in range(len(sizes)) if axis not in spatial and sizes[axis] > 1]
    if len(spatial) != 3 or len(others) > 1:
        return NrrdHeader(fields, dtype, sizes, None, FileGeometry(sizes, UNKNOWN_AFFINE))
    if others and any(key.startswith("Segment0_") for key in fields):
        raise VolumeError(
            "dimensions",
            f"it is a 3D Slicer segmentation of {sizes[others[0]]} layers, because segments overlap",
            "collapse the layers in 3D Slicer (Segmentations module, Binary labelmap layers), or export a labelmap",
        )
    affine = np.eye(4)
    affine[:3, :3] = np.array([directions[axis] for axis in spatial]).T
    origin = fields.get("space origin")
    if origin is not None and len(origin) >= 3:
        affine[:3, 3] = np.asarray(origin, np.float64)[:3]
    space = str(fields.get("space", "")).lower().removesuffix("-time").removesuffix("t")
    if not oriented or space not in _TO_RAS:
        problems.append(
            FileProblem(
                "warning",
                "orientation-unknown",
                f"the header states {'no directions of the voxel axes' if not oriented else f'the space {space!r}'};"
                " the axes are read as left, posterior, superior, as ITK does",
                "write space and space directions into the header, if the axes point elsewhere",
            )
        )
    affine = _TO_RAS.get(space, LPS_TO_RAS) @ affine
    affine = _in_mm(fields, affine, problems)
    channel = others[0] if others else next((axis for axis in range(len(sizes)) if axis not in spatial), None)
    shape = tuple(sizes[axis] for axis in spatial)
    shape = (sizes[others[0]], *shape) if others else shape
    return NrrdHeader(fields, dtype, sizes, channel, checked_geometry(shape, affine, problems))


def _directions(fields: Any, axes: int) -> tuple[list[NDArray[np.float64]], bool]:
    """The step of each axis in space; NaN for an axis of channels. Then False if there are spacings only."""
    nothing = np.full(3, np.nan)
    stated = fields.get("space directions")
    if stated is not None:
        rows = [nothing if row is None else np.asarray(row, np.float64) for row in stated]
        return [row[:3] if len(row) >= 3 else nothing for row in rows], True
    spacings = fields.get("spacings")
    if spacings is None:
        raise VolumeError(
            "spacing", "the header states no voxel spacing", "write space directions, or spacings, into the header"
        )
    found, unit = [], iter(np.eye(3))
    for axis, size in zip(range(axes), spacings, strict=True):
        is_channel = not np.isfinite(size) or (axes > 3 and _kind(fields, axis) not in ("domain", "space"))
        found.append(nothing if is_channel else float(size) * next(unit, nothing))
    return found, False


def _kind(fields: Any, axis: int) -> str:
    kinds = fields.get("kinds") or []
    return str(kinds[axis]).lower() if axis < len(kinds) else ""


def _in_mm(fields: Any, affine: NDArray[np.float64], problems: list[FileProblem]) -> NDArray[np.float64]:
    units = {str(unit).strip('"').lower() for unit in fields.get("space units") or []} - {"", "???", "none"}
    unit = next(iter(units)) if len(units) == 1 else "mm"
    if len(units) > 1 or unit not in _UNITS_MM:
        raise VolumeError(
            "spacing", f"the space units are {', '.join(sorted(units))}", "write mm, cm, m or microns, one for all axes"
        )
    if _UNITS_MM[unit] != 1:
        affine = affine.copy()
        affine[:3] *= _UNITS_MM[unit]
        problems.append(
            FileProblem(
                "warning",
                "units",
                f"the voxel spacing is {numbers(voxel_sizes(affine))} mm, since the header's unit is {unit}",
                'set the unit to mm if the numbers in the header are mm (space units: "mm" "mm" "mm")',
            )
        )
    return affine


def _data_file(path: Path, fields: Any) -> Path | None:
    name = fields.get("data file", fields.get("datafile"))
    if name is None:
        return None
    if str(name).upper().startswith("LIST") or "%" in str(name):
        raise VolumeError("header", "its voxels are in several data files", "convert it to .nrrd or .nii.gz")
    return data_file(path, str(name))


def _read_voxels(file: BinaryIO, header: NrrdHeader) -> NDArray[Any]:
    """Read the voxels from the current position of a file, (sizes) in Fortran order."""
    fields = header.fields
    encoding = str(fields.get("encoding", "raw")).lower()
    for _ in range(int(fields.get("line skip", fields.get("lineskip", 0)))):
        file.readline()
    skip = int(fields.get("byte skip", fields.get("byteskip", 0)))
    size = int(np.prod(header.sizes, dtype=np.int64)) * header.dtype.itemsize
    if encoding == "raw":
        content = file.read()
    elif encoding in ("gzip", "gz"):
        content = gunzip(file)
    elif encoding in ("bzip2", "bz2"):
        stream = bz2.BZ2Decompressor()
        try:
            content = stream.decompress(file.read())
        except OSError as error:
            raise VolumeError("corrupt", f"the bzip2 stream is damaged ({error})", FETCH) from error
        if not stream.eof:
            raise VolumeError("truncated", "the bzip2 stream ends before its end mark", FETCH)
        if stream.unused_data:
            raise VolumeError("trailing-data", "it has other bytes after the end of its bzip2 stream", FETCH)
    elif encoding in ("ascii", "text", "txt"):
        try:
            content = np.array(file.read().split(), header.dtype).tobytes()
        except (ValueError, OverflowError) as error:
            raise VolumeError("corrupt", f"its text holds something other than numbers ({error})", FETCH) from error
    else:
        raise VolumeError("header", f"it has the encoding {encoding}", "convert it to raw or gzip")
    content = content[skip:] if skip >= 0 else content[max(0, len(content) - size) :]
    refuse_wrong_length(len(content) - size, header.sizes, header.dtype.name)
    return np.frombuffer(content, header.dtype).reshape(header.sizes, order="F")
