"""Files of probabilities beside the masks, on the grids of the images, with the names of the classes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from fusionseg.data.formats.image_file import VolumeError
from fusionseg.data.formats.readers import Readers
from fusionseg.data.formats.readers.nifti import read_header
from fusionseg.inference.mask_formats.nifti import mask_header
from fusionseg.utils.files import whole_file

_COMMENT = "comment"
"""Kind of a NIfTI header extension that holds a text."""


@dataclass(frozen=True)
class Probabilities:
    """The probabilities of a case.

    Args:
        values: float32 (C, X, Y, Z), on the grid of the image.
        names: of the C outputs: the classes, the background first; or the regions.
        image: the (first) file of the image, or the folder of its DICOM series.
        readers: of the image files.
        origin: the text about the origin of the mask beside it.
    """

    values: NDArray[np.float32]
    names: Sequence[str]
    image: Path
    readers: Readers
    origin: str


class ProbabilityFormat(Protocol):
    """A file format of probabilities."""

    suffix: str
    """End of the file names."""

    def write(self, probabilities: Probabilities, target: Path) -> None:
        """Write the probabilities of a case, whole or not at all.

        Raises:
            WriteError: the file cannot be written.
        """

    def read_origin(self, target: Path) -> str:
        """Read the text about the origin, without the voxels; empty if there is none."""


class NiftiProbabilities:
    """A compressed NIfTI file, float32 (X, Y, Z, C). A JSON text in a header extension names the C volumes."""

    suffix = "_probabilities.nii.gz"

    def write(self, probabilities: Probabilities, target: Path) -> None:
        header = mask_header(probabilities.image, probabilities.readers)
        header.set_data_dtype(np.float32)
        header["descrip"] = probabilities.origin.encode()
        header.extensions.append(
            nib.nifti1.Nifti1Extension(_COMMENT, json.dumps({"labels": list(probabilities.names)}).encode())
        )
        kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
        image = kind(np.moveaxis(probabilities.values, 0, -1), header.get_best_affine(), header)
        with whole_file(target) as temporary:
            nib.save(image, temporary)

    def read_origin(self, target: Path) -> str:
        try:
            header = read_header(target).header
        except (VolumeError, ValueError):  # damaged, or of another program
            return ""
        return bytes(header["descrip"].item()).rstrip(b"\0").decode("latin-1")


class NpzProbabilities:
    """A compressed NumPy archive as nnU-Net writes it: `probabilities`, float32 (C, Z, Y, X).

    It also has `labels` (names), `affine` (4x4, from voxel x, y, z to mm in RAS) and `axes`.
    """

    suffix = ".npz"

    def write(self, probabilities: Probabilities, target: Path) -> None:
        content: Mapping[str, Any] = {
            "probabilities": probabilities.values.transpose(0, 3, 2, 1),
            "labels": np.array(list(probabilities.names)),
            "affine": probabilities.readers.read_geometry(probabilities.image).affine,
            "axes": np.array("CZYX"),
            "origin": np.array(probabilities.origin),
        }
        with whole_file(target) as temporary:
            np.savez_compressed(temporary, **content)

    def read_origin(self, target: Path) -> str:
        try:
            with np.load(target, allow_pickle=False) as content:
                return str(content["origin"])
        except (OSError, ValueError, TypeError, KeyError, EOFError, AttributeError, BadZipFile):  # of another program
            return ""


PROBABILITY_FORMATS: dict[str, ProbabilityFormat] = {"nifti": NiftiProbabilities(), "npz": NpzProbabilities()}
