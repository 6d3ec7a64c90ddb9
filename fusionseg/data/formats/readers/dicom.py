"""The reader of DICOM: a folder of slices is one image; a file is a multi-frame image or a segmentation."""

from __future__ import annotations

from pathlib import Path

from fusionseg.config.registry import readers
from fusionseg.data.formats.dicom.folder import files_of_folder, holds_series, is_image_alone, is_segmentation
from fusionseg.data.formats.dicom.pixels import read_voxels
from fusionseg.data.formats.dicom.segmentation import read_segmentation
from fusionseg.data.formats.dicom.series import find_series
from fusionseg.data.formats.dicom.stack import stack_slices
from fusionseg.data.formats.image_file import FileGeometry, ImageFile
from fusionseg.data.formats.readers.affines import checked_geometry


@readers.register("dicom")
class DicomReader:
    """The built-in reader of DICOM: CT, MR and PET series, enhanced multi-frame images, and DICOM-SEG."""

    suffixes = (".dcm",)
    packages = ("pydicom",)
    series: str | None = None
    """The series to read, as `data.series`."""

    def read(self, path: Path) -> ImageFile:
        """Read a series or a file.

        Args:
            path: the folder of one series (in the folder itself, or else in folders within it), or a file.

        Raises:
            VolumeError: there are several series, slices are missing, or a file is damaged; or a package is missing.
        """
        series = find_series(path, self.series)
        if series.is_segmentation:
            return read_segmentation(series.files[0])
        stack = stack_slices(series)
        geometry = checked_geometry(stack.shape, stack.affine, series.problems)
        voxels = read_voxels(stack.slices, has_table=any(file.has_table for file in series.files))
        scaled = any((one.slope, one.intercept) != (1, 0) for one in stack.slices)
        stored_type = series.files[0].stored_type + (" scaled" if scaled else "")
        return ImageFile(voxels, geometry.affine, stored_type, geometry.problems)

    def read_geometry(self, path: Path) -> FileGeometry:
        """Read the headers of a series or of a file, and no pixel.

        Args:
            path: as for `read`.

        Raises:
            VolumeError: as `read`, for faults that the headers show.
        """
        series = find_series(path, self.series)
        if series.is_segmentation:
            content = read_segmentation(series.files[0])
            return FileGeometry(content.voxels.shape, content.affine, content.problems)
        stack = stack_slices(series)
        return checked_geometry(stack.shape, stack.affine, series.problems)

    def is_image_alone(self, path: Path) -> bool:
        """Test that a file is an image without others: several frames, or a segmentation.

        Args:
            path: a file.
        """
        return is_image_alone(path, self.series)

    def reads_folder(self, folder: Path) -> bool:
        """Test that a folder directly holds the slices of a series, or one multi-frame file.

        Args:
            folder: any folder.
        """
        return holds_series(folder, self.series)

    def is_label(self, path: Path) -> bool:
        """Test that a file, or the one file in a folder, is a DICOM-SEG.

        Args:
            path: as for `read`.
        """
        return is_segmentation(path)

    def files(self, path: Path) -> list[Path]:
        """The files of an image: those of the folder that should be DICOM, or the file itself.

        Args:
            path: as for `read`.
        """
        return files_of_folder(path, self.series) if path.is_dir() else [path]
