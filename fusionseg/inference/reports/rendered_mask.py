"""A picture of a mask file over its image, for `fusionseg render`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.formats.case_reader import Image, read_image, read_label
from fusionseg.data.formats.geometry import voxel_sizes
from fusionseg.data.formats.problems import CaseError
from fusionseg.data.labels.scheme import MAX_CLASSES, LabelScheme
from fusionseg.data.preprocessing.resampling import find_reorientation
from fusionseg.observability.case_pictures import draw_case
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import whole_file, writable_file

_SUFFIX = ".png"


def write_rendering(
    image: Path, mask: Path, output: Path, reference: Path | None = None, names: Sequence[str] = ()
) -> None:
    """Write a picture of a mask over its image, see `draw_case`.

    Args:
        image: a file, or a folder of a DICOM series.
        mask: in the geometry of the image, with values up to `MAX_CLASSES` - 1.
        output: the PNG file.
        reference: a label to compare with; None for none.
        names: of the values 1, 2, ...

    Raises:
        UserError: a file cannot be read, or does not belong to the image; or the picture cannot be written.
    """
    if output.suffix.lower() != _SUFFIX:
        raise UserError(f"--output: {output}: expected a name that ends in {_SUFFIX}")
    writable_file(output, "--output")
    try:
        source = read_image([image])
        shown = _read_mask(mask, source)
        truth = None if reference is None else _read_mask(reference, source)
    except CaseError as error:
        raise UserError([str(problem) for problem in error.problems]) from None
    turn, affine = find_reorientation(source.grid.affine, source.grid.shape, "RAS")
    rgb = draw_case(
        turn(source.values[0]),
        None if truth is None else turn(truth),
        turn(shown),
        voxel_sizes(affine),
        names,
        f"{mask.name} over {image.name}" + ("" if reference is None else f", compared with {reference.name}"),
        renderings=True,
    )
    from PIL import Image as Pictures  # slow to import

    with whole_file(output) as temporary:
        Pictures.fromarray(rgb).save(temporary, "png")


def _read_mask(path: Path, image: Image) -> NDArray[np.uint8]:
    scheme = LabelScheme.of_names([str(value) for value in range(MAX_CLASSES)])
    return read_label(path, image.grid, scheme)
