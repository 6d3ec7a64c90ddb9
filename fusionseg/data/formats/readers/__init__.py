"""The readers of a data set's images, chosen by the suffix of a file's name; a folder is a DICOM series.

Built-in readers are in modules of this folder, and register themselves. `data.reader` adds a user's own reader in front
of them.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionseg.config.data.dataset import DataConfig
from fusionseg.config.outside import failure_text
from fusionseg.config.outside_part import OutsidePart
from fusionseg.config.registry import readers as registry
from fusionseg.data.formats.geometry import LARGEST_SPACING_MM, SMALLEST_SPACING_MM, is_invertible, voxel_sizes
from fusionseg.data.formats.image_file import FileGeometry, ImageFile, Reader, VolumeError
from fusionseg.data.formats.readers.byte_streams import SPECIAL, is_special
from fusionseg.data.formats.readers.packages import optional_package
from fusionseg.data.outside import make_part
from fusionseg.utils.errors import UserError

KEY = "data.reader"


class Readers:
    """The readers of a data set. They travel between processes as their configuration.

    Args:
        config: the user's own reader, which comes before the built-in ones; None for these alone.
        series: the DICOM series to read, as `data.series`; None where each folder holds one.

    Raises:
        UserError: there is no such reader, or it cannot be made.
    """

    def __init__(self, config: OutsidePart | None = None, series: str | None = None) -> None:
        self.config = config
        self.series = series
        self._built_in: list[Reader] = [kind() for kind in registry.built_in().values()]
        for reader in self._built_in:
            if hasattr(reader, "series"):
                reader.series = series
        self._all: list[Reader] = [*([] if config is None else [_open_reader(config)]), *self._built_in]

    def __reduce__(self) -> tuple[type[Readers], tuple[OutsidePart | None, str | None]]:
        return Readers, (self.config, self.series)

    @staticmethod
    def of(data: DataConfig) -> Readers:
        """Make the readers of a configuration.

        Args:
            data: the section `data`.

        Raises:
            UserError: as for the class.
        """
        return Readers(data.reader, data.series)

    @cached_property
    def suffixes(self) -> tuple[str, ...]:
        """The suffixes of all readers in lower case, the longest first, so that .nii.gz comes before .gz."""
        every = dict.fromkeys(suffix.lower() for reader in self._all for suffix in reader.suffixes)
        return tuple(sorted(every, key=len, reverse=True))

    @property
    def expected(self) -> str:
        """The kinds of images, for messages."""
        every = dict.fromkeys(suffix for reader in self._all for suffix in reader.suffixes)
        common = sorted(every, key=lambda suffix: not suffix.startswith(".nii"))
        return f"{', '.join(common)}, or the folder of a DICOM series"

    def is_image_file(self, path: Path) -> bool:
        """Test that one of the readers reads files of this name. Some systems write the suffix in capitals."""
        return path.name.lower().endswith(self.suffixes)

    def reads_folder(self, path: Path) -> bool:
        """Test that a folder is one image: it directly holds the slices of a DICOM series.

        A folder with several series counts too; `read` refuses it.
        """
        return any(reader.reads_folder(path) for reader in self._all if hasattr(reader, "reads_folder"))

    def missing_package(self, path: Path) -> VolumeError | None:
        """The error of a package that the reader of a path needs and that is not installed; None if all are there."""
        try:
            for package in getattr(self._reader_of(path), "packages", ()):
                optional_package(package)
        except VolumeError as error:
            return error
        return None

    def is_label(self, path: Path) -> bool:
        """Test that an image is of a format that holds labels only, such as DICOM-SEG."""
        test = getattr(self._reader_of(path), "is_label", None)
        return bool(test is not None and test(path))

    def image_files(self, folder: Path) -> list[Path]:
        """Image files of a folder, sorted.

        Hidden files, such as the `._x.nii.gz` of macOS, are not data. Slices of a DICOM series are no images, nor are
        scouts and reports, and the data file of a pair belongs to its header file.
        """
        files = sorted(file for file in folder.iterdir() if not file.name.startswith(".") and self.is_image_file(file))
        slices = [suffix for reader in self._all if hasattr(reader, "reads_folder") for suffix in reader.suffixes]
        if any(file.name.lower().endswith(tuple(slices)) for file in files) and self.reads_folder(folder):
            files = [file for file in files if not file.name.lower().endswith(tuple(slices))]
        return [file for file in files if not self._is_data_file(file) and self._is_image_alone(file)]

    def _is_image_alone(self, path: Path) -> bool:
        test = getattr(self._reader_of(path), "is_image_alone", None)
        return bool(test is None or test(path))

    def _is_data_file(self, path: Path) -> bool:
        suffixes = tuple(getattr(self._reader_of(path), "data_suffixes", ()))
        return path.name.lower().endswith(suffixes) and self.files(path)[0] != path if suffixes else False

    def files(self, path: Path) -> list[Path]:
        """List the files of an image: one in most formats, header and data of a pair, the slices of a folder.

        Args:
            path: the path that a case names.

        Returns:
            Existing files; the path itself where no reader knows better.
        """
        reader = self._reader_of(path)
        own = getattr(reader, "files", None)
        if own is None:
            return [path]
        try:
            listed = own(path) if reader in self._built_in else _call(own, path)
        except VolumeError:  # `read` reports it
            return [path]
        return [file for file in map(Path, listed) if file.exists()] or [path]

    def suffix(self, path: Path) -> str:
        """The suffix of a file as it is written, such as ".nii.gz"; of an unknown kind, the part from the last dot."""
        known = next((len(s) for s in self.suffixes if path.name.lower().endswith(s)), None)
        if known is None:  # names of patients and series have dots, too
            known = 0 if path.is_dir() else len(path.suffix)
        return path.name[len(path.name) - known :]

    def stem(self, path: Path) -> str:
        """The name of a file without folder and suffix."""
        return path.name[: len(path.name) - len(self.suffix(path))] or path.name

    def read(self, path: Path) -> ImageFile:
        """Read an image.

        Args:
            path: a file whose name ends in one of `suffixes`, or the folder of a DICOM series.

        Raises:
            VolumeError: no reader reads files of this name, or the file holds no usable volume.
        """
        reader = self._choose(path)
        if reader in self._built_in:
            content = reader.read(path)
            assert isinstance(content, ImageFile)
            return content
        return _checked_content(reader, _call(reader.read, path))

    def read_geometry(self, path: Path) -> FileGeometry:
        """Read the shape and the affine of an image file, without its voxels where the reader can.

        Args:
            path: a file whose name ends in one of `suffixes`, or the folder of a DICOM series.

        Raises:
            VolumeError: as for `read`.
        """
        reader = self._choose(path)
        own = getattr(reader, "read_geometry", None)
        if own is None:
            content = self.read(path)
            return FileGeometry(content.voxels.shape, content.affine, content.problems)
        if reader in self._built_in:
            geometry: FileGeometry = own(path)
            return geometry
        return _checked_geometry(reader, _call(own, path))

    def _reader_of(self, path: Path) -> Reader | None:
        """The reader of a path; None if there is none, and for pipes and devices."""
        if is_special(path):
            return None
        if path.is_dir():
            of_folders = [reader for reader in self._all if hasattr(reader, "reads_folder")]
            if found := next((reader for reader in of_folders if reader.reads_folder(path)), None):
                return found
            # A folder that is named like a file is in the place of that file. The last reader of folders of images is
            # the built-in one, which looks into the folders within the folder too.
            return self._reader_of_name(path) or [reader for reader in of_folders if reader.suffixes][-1]
        return self._reader_of_name(path)

    def _reader_of_name(self, path: Path) -> Reader | None:
        name = path.name.lower()
        return next((r for r in self._all if name.endswith(tuple(suffix.lower() for suffix in r.suffixes))), None)

    def _choose(self, path: Path) -> Reader:
        reader = self._reader_of(path)
        if reader is not None:
            return reader
        if is_special(path):
            raise VolumeError(*SPECIAL)
        if not path.exists():
            raise VolumeError(
                "missing", "there is no such file or folder", "copy it there, or take the case out of the data set"
            )
        raise VolumeError(
            "header",
            f"no reader reads files of this name (expected {self.expected})",
            f"convert the file, or name a reader for it ({KEY})",
        )


def _open_reader(config: OutsidePart) -> Reader:
    """Make the reader that a configuration names.

    Raises:
        UserError: there is no such reader, it cannot be made, or it lacks `suffixes` or `read`.
    """
    made = make_part(config, KEY)
    suffixes = getattr(made, "suffixes", None)
    if isinstance(suffixes, str) or not suffixes or not all(isinstance(s, str) and s[:1] == "." for s in suffixes):
        raise UserError(
            f"{KEY}: {config.name} has no list of file-name suffixes (expected an attribute such as"
            f' suffixes = (".npy",), got {suffixes!r}); add it'
        )
    if not callable(getattr(made, "read", None)):
        raise UserError(f"{KEY}: {config.name} has no method read(path); add it (docs/extending.md has an example)")
    reader: Reader = made
    return reader


def _call(function: Any, path: Path) -> Any:
    """Call a method of a user's reader; every exception becomes a problem of the file, with the line that raised it."""
    if not path.exists():
        raise VolumeError("missing", "there is no such file", "copy it there, or take the case out of the data set")
    try:
        return function(path)
    except (VolumeError, MemoryError):
        raise
    except Exception as error:  # a user's code may raise anything; `fusionseg check` has to go on
        raise VolumeError(
            "unreadable", f"the reader fails: {failure_text(error)}", "fetch the file again, or correct the reader"
        ) from error


def _checked_content(reader: Reader, content: Any) -> ImageFile:
    """The content that a user's reader returned.

    Raises:
        VolumeError: the reader did not return voxels and an affine.
    """
    name = type(reader).__name__
    if not isinstance(content, ImageFile):
        if not (isinstance(content, tuple) and len(content) == 2):
            raise _invalid(f"{name}.read", "(voxels, affine)", f"a {type(content).__name__}")
        content = ImageFile(np.asarray(content[0]), np.asarray(content[1]))
    voxels = np.asarray(content.voxels)
    if voxels.dtype.kind == "b":
        voxels = voxels.astype(np.uint8)
    if voxels.dtype.kind not in "iuf" or voxels.size == 0:
        raise _invalid(f"{name}.read", "voxels of integers or floats", f"{voxels.dtype} of shape {voxels.shape}")
    affine = _checked_affine(f"{name}.read", content.affine)
    return ImageFile(voxels, affine, content.stored_type or voxels.dtype.name, content.problems, content.partial)


def _checked_geometry(reader: Reader, geometry: Any) -> FileGeometry:
    name = f"{type(reader).__name__}.read_geometry"
    if not isinstance(geometry, FileGeometry):
        if not (isinstance(geometry, tuple) and len(geometry) == 2):
            raise _invalid(name, "(shape, affine)", f"a {type(geometry).__name__}")
        geometry = FileGeometry(tuple(map(int, geometry[0])), np.asarray(geometry[1]))
    return FileGeometry(geometry.shape, _checked_affine(name, geometry.affine), geometry.problems)


def _checked_affine(method: str, affine: Any) -> NDArray[np.float64]:
    values = np.asarray(affine)
    if values.shape != (4, 4) or values.dtype.kind not in "iuf":
        raise _invalid(method, "a 4x4 affine", f"an array of {values.dtype} of shape {values.shape}")
    matrix: NDArray[np.float64] = values.astype(np.float64)
    if not is_invertible(matrix) or not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise VolumeError(
            "affine", f"{method} returned an affine that has no inverse", "correct the reader, or the file's geometry"
        )
    sizes = voxel_sizes(matrix)
    if not (min(sizes) >= SMALLEST_SPACING_MM and max(sizes) <= LARGEST_SPACING_MM):
        raise VolumeError(
            "spacing",
            f"the voxel spacing is {'x'.join(f'{size:g}' for size in sizes)} mm"
            f" (expected {SMALLEST_SPACING_MM:g} to {LARGEST_SPACING_MM:g} mm)",
            "let the reader return the affine in mm, or correct the file",
        )
    return matrix


def _invalid(method: str, expected: str, found: str) -> VolumeError:
    return VolumeError(
        "unreadable", f"{method} returned an invalid value (expected {expected}, got {found})", "correct the reader"
    )
