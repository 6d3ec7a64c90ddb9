"""Masks as NRRD files, with the fields by which 3D Slicer shows the names of the classes."""

from __future__ import annotations

import colorsys
import unicodedata
from pathlib import Path

from fusionseg.data.formats.geometry import LPS_TO_RAS
from fusionseg.data.formats.readers import Readers
from fusionseg.data.formats.readers.nrrd import NrrdReader
from fusionseg.data.formats.readers.packages import optional_package
from fusionseg.inference.mask_formats.mask import (
    Mask,
    OriginText,
    StoredMask,
    is_mask_type,
    voxel_digest,
)
from fusionseg.utils.files import whole_file

_ORIGIN = "fusionseg"
_HUE_STEP = 0.618034  # the golden ratio: hues of neighbouring classes differ clearly, however many there are


class NrrdMasks:
    """The format NRRD. A key/value field of the header has the origin."""

    suffix = ".seg.nrrd"

    def check(self, image: Path, readers: Readers) -> None:
        """Accept every image, if the package is installed."""
        optional_package("nrrd")

    def files(self, target: Path) -> list[Path]:
        return [target]

    def write(self, mask: Mask, target: Path, origin: OriginText) -> None:
        nrrd = optional_package("nrrd")
        affine = LPS_TO_RAS @ mask.affine()
        header = {
            "space": "left-posterior-superior",
            "space directions": affine[:3, :3].T,  # a row for each axis
            "space origin": affine[:3, 3],
            "kinds": ["domain"] * 3,
            "encoding": "gzip",
            _ORIGIN: origin(voxel_digest(mask.values)),
            **_segment_fields(mask),
        }
        with whole_file(target) as temporary:
            nrrd.write(str(temporary), mask.values, header, index_order="F")

    def read(self, target: Path) -> StoredMask:
        values = NrrdReader().read(target).voxels  # reports every fault of the file
        header = optional_package("nrrd").read_header(str(target))
        text = str(header.get(_ORIGIN, "")) if is_mask_type(values.dtype) else ""
        return StoredMask(text, voxel_digest(values))


def _segment_fields(mask: Mask) -> dict[str, str]:
    """The key/value fields by which 3D Slicer knows the segments of a labelmap."""
    extent = " ".join(f"0 {size - 1}" for size in mask.values.shape)
    fields = {
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    for number, (value, name) in enumerate(mask.foreground.items()):
        red, green, blue = colorsys.hsv_to_rgb(number * _HUE_STEP % 1, 0.7, 0.9)
        fields |= {
            f"Segment{number}_ID": f"Segment_{value}",
            f"Segment{number}_Name": _ascii(name),
            f"Segment{number}_Color": f"{red:.4f} {green:.4f} {blue:.4f}",
            f"Segment{number}_Extent": extent,
            f"Segment{number}_LabelValue": str(value),
            f"Segment{number}_Layer": "0",
        }
    return fields


def _ascii(name: str) -> str:
    """The name in the characters that the header of an NRRD file may have: letters lose their accents."""
    letters = (letter if letter.isascii() else letter.casefold() for letter in " ".join(name.split()))
    return unicodedata.normalize("NFKD", "".join(letters)).encode("ascii", "ignore").decode() or "class"
