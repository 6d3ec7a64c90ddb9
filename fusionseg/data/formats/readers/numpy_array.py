"""The reader of NumPy arrays with a stated spacing: x.npy, and x.json beside it."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionseg.config.registry import readers
from fusionseg.data.formats.image_file import FETCH, FileGeometry, ImageFile, VolumeError
from fusionseg.data.formats.readers.affines import checked_geometry
from fusionseg.data.formats.readers.byte_streams import file_errors, refuse_wrong_length

KEYS = ("spacing", "affine")
_OTHER_KEYS = ("labels", "origin")
"""Keys that `fusionseg predict` writes beside a mask: names of the values, and the origin of the mask."""
_PARSING = Lock()
"""NumPy evaluates the header of a file as Python, which may fail in two threads at once (a fault of Python 3.11)."""
_FORM = 'write {"spacing": [x, y, z]} in mm, or {"affine": 4x4 matrix from voxel index to mm in RAS+}'


@readers.register("numpy")
class NumpyReader:
    """The built-in reader of .npy files: (X, Y, Z), or (C, X, Y, Z) with the channels first.

    x.json states the geometry of x.npy: `{"spacing": [0.8, 0.8, 1.5]}`, for axes that point to the right, to the front
    and up; or `{"affine": [[...], ...]}`.
    """

    suffixes = (".npy",)

    def read(self, path: Path) -> ImageFile:
        """Read an array and its JSON.

        Args:
            path: the .npy file.

        Raises:
            VolumeError: the array is damaged, or there is no stated spacing.
        """
        shape, dtype = _array_header(path)
        geometry = checked_geometry(shape, _stated_affine(path))
        try:
            with _PARSING:
                voxels = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise VolumeError("unreadable", f"the array cannot be read ({error})", FETCH) from error
        if dtype.kind == "b":
            voxels = voxels.astype(np.uint8)
        return ImageFile(voxels, geometry.affine, dtype.name, geometry.problems)

    def read_geometry(self, path: Path) -> FileGeometry:
        """Read the header of the array, and its JSON.

        Args:
            path: the .npy file.

        Raises:
            VolumeError: as `read`, for faults that the header shows.
        """
        shape, _ = _array_header(path)
        return checked_geometry(shape, _stated_affine(path))

    def files(self, path: Path) -> list[Path]:
        """The array and its JSON.

        Args:
            path: the .npy file.
        """
        return [path, path.with_suffix(".json")]


def _array_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """The shape and the data type of a .npy file, whose length is checked.

    Raises:
        VolumeError: the file is damaged, or holds no numbers.
    """
    with file_errors(), path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            with _PARSING:
                shape, _, dtype = read(file)
        except (ValueError, EOFError) as error:
            raise VolumeError("header", f"it is no .npy file, or is cut off ({error})", FETCH) from error
        surplus = path.stat().st_size - file.tell() - int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if dtype.kind not in "iufb":
        raise VolumeError(
            "header", f"it has the data type {dtype}, not one number per voxel", "convert it to integers or floats"
        )
    refuse_wrong_length(surplus, shape, dtype.name)
    return shape, dtype


def _stated_affine(path: Path) -> NDArray[np.float64]:
    sidecar = path.with_suffix(".json")
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise VolumeError(
            "spacing", f"a .npy file states no voxel spacing, and there is no {sidecar.name} beside it", _FORM
        ) from None
    except OSError as error:
        raise VolumeError("unreadable", f"{sidecar.name}: {error.strerror}", "check its permissions") from error
    except ValueError as error:
        raise VolumeError("spacing", f"{sidecar.name} is not valid JSON ({error})", _FORM) from error
    keys = [key for key in content if key not in _OTHER_KEYS] if isinstance(content, dict) else []
    if len(keys) != 1 or keys[0] not in KEYS:
        near = [match for key in keys if key not in KEYS for match in difflib.get_close_matches(key, KEYS, n=1)]
        hint = f" (did you mean {near[0]}?)" if near else ""
        found = ", ".join(keys) or ("no entry" if isinstance(content, dict) else f"a {type(content).__name__}")
        raise VolumeError("spacing", f"{sidecar.name} holds {found}{hint}, not one of {' or '.join(KEYS)}", _FORM)
    key, value = keys[0], content[keys[0]]
    shape = (3,) if key == "spacing" else (4, 4)
    try:
        values = np.asarray(value, np.float64)
    except (ValueError, TypeError):
        values = np.zeros(0)
    last = values[3:].tolist() if values.shape == (4, 4) else [[0, 0, 0, 1]]
    if values.shape != shape or not np.isfinite(values).all() or last != [[0, 0, 0, 1]]:
        raise VolumeError("spacing", f"{sidecar.name}: {key} is {value}", _FORM)
    if key == "spacing" and values.min() <= 0:
        raise VolumeError("spacing", f"{sidecar.name}: spacing is {value}, not above 0", _FORM)
    return np.diag([*values, 1.0]) if key == "spacing" else values
