"""The reader of NIfTI pairs: the header in x.hdr, the voxels in x.img. Analyze files have these names too."""

from __future__ import annotations

from pathlib import Path

from fusionseg.config.registry import readers
from fusionseg.data.formats.image_file import FileGeometry, ImageFile, VolumeError
from fusionseg.data.formats.readers.byte_streams import read_all
from fusionseg.data.formats.readers.nifti import is_gzip, parse_header, scaled_volume, to_geometry, to_image_file

_DATA = {".hdr": ".img", ".hdr.gz": ".img.gz"}
_HEADERS = {data: header for header, data in _DATA.items()}


@readers.register("nifti_pair")
class NiftiPairReader:
    """The built-in reader of NIfTI-1 and NIfTI-2 in two files. A case names either file."""

    suffixes = (*_DATA, *_HEADERS)
    data_suffixes = tuple(_HEADERS)

    def read(self, path: Path) -> ImageFile:
        """Read both files to the last byte.

        Args:
            path: the header or the data file.

        Raises:
            VolumeError: one of the files is missing or damaged, or the pair is Analyze.
        """
        header, data = self.files(path)
        raw = parse_header(header, read_all(header, gzip=is_gzip(header)), pair=True)
        try:
            content = read_all(data, gzip=is_gzip(data))
        except VolumeError as error:
            raise VolumeError(error.code, f"{data.name} beside it: {error.message}", error.remedy) from error
        return to_image_file(scaled_volume(raw, content))

    def read_geometry(self, path: Path) -> FileGeometry:
        """Read the header file.

        Args:
            path: the header or the data file.

        Raises:
            VolumeError: as `read`, for faults of the header.
        """
        header, _ = self.files(path)
        return to_geometry(parse_header(header, read_all(header, gzip=is_gzip(header)), pair=True))

    def files(self, path: Path) -> list[Path]:
        """The header file and the data file of a pair. Some systems write the suffixes in capitals.

        Args:
            path: either of the two.
        """
        suffix = next(suffix for suffix in sorted(self.suffixes, key=len)[::-1] if path.name.lower().endswith(suffix))
        stem, written = path.name[: -len(suffix)], path.name[-len(suffix) :]
        other = _DATA.get(suffix) or _HEADERS[suffix]
        partner = path.with_name(stem + (other.upper() if written.isupper() else other))
        return [path, partner] if suffix in _DATA else [partner, path]
