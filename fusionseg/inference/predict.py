"""`fusionseg predict`: masks as NIfTI in each input's own geometry."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from fusionseg.data.formats.dataset import Case, find_inputs
from fusionseg.data.formats.ignored_entries import foreign_files
from fusionseg.data.formats.problems import CaseError
from fusionseg.data.formats.readers import Readers
from fusionseg.data.formats.readers.nifti import SUFFIXES, read_header
from fusionseg.inference.dataset_folders import refuse_dataset_folder
from fusionseg.inference.masks import Mark, make_mark, maker_of, mask_path, masks_to_make, refuse_one_name
from fusionseg.inference.predictor import PredictOptions, Predictor
from fusionseg.observability.progress import counting_progress
from fusionseg.utils.errors import UserError, WriteError, some_of
from fusionseg.utils.files import whole_file, writable_folder
from fusionseg.utils.logs import RESULT

log = logging.getLogger("fusionseg")

GEOMETRY_FIELDS = (
    *("xyzt_units", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


def predict(
    runs: Sequence[Path], inputs: Path, output: Path, options: PredictOptions, *, skip_existing: bool = False
) -> dict[str, str]:
    """Predict every image at `inputs` with a run, or with several runs as an ensemble; see `predict_files`.

    Args:
        runs: run folders or checkpoints.
        inputs: an image file or a folder of images.
        output: folder of the masks.
        options: device, checkpoint, overlap and so on.
        skip_existing: keep masks of the same runs and options; see `masks_to_make`.

    Returns:
        The cases that failed, with the reason.

    Raises:
        UserError: a run cannot be used, there is no image, or the output cannot be written.
    """
    check_output(output)
    return predict_files(Predictor(runs, options), inputs, output, skip_existing=skip_existing)


def check_output(output: Path) -> None:
    """Refuse an output that is a file or a data set, before the network is loaded.

    Raises:
        UserError: it is one.
    """
    if os.path.exists(output) and not os.path.isdir(output):
        raise UserError(f"{output}: is a file; --output names the folder that receives the masks")
    refuse_dataset_folder(output, "--output")


def predict_files(predictor: Predictor, inputs: Path, output: Path, *, skip_existing: bool = False) -> dict[str, str]:
    """Predict every image at `inputs` into `output`/<case>.nii.gz.

    Args:
        skip_existing: keep masks that are there and were made by the same runs and options; see `masks_to_make`.

    Returns:
        The cases that failed, with the reason; the others have their mask.

    Raises:
        UserError: the output cannot be written, or holds files that are not to be replaced.
        WriteError: it could be written no more, such as on a full disk; the masks that were written stay.
    """
    cases = find_inputs(inputs, len(predictor.channels), predictor.readers)
    for note in foreign_files(inputs, predictor.readers):
        log.warning("%s", note)
    _keep_inputs(cases, inputs, output)
    maker = maker_of(predictor)
    due = masks_to_make(cases, output, maker, skip_existing=skip_existing)
    if due:
        writable_folder(output, "--output")
        refuse_one_name(due, output)
    failed: dict[str, str] = {}
    trained_on: list[str] = []
    kept = len(cases) - len(due)
    with counting_progress("predicting") as progress:
        for done, case in enumerate(due, start=kept):
            progress(done, len(cases))
            try:
                mask = predictor(case.images)
            except CaseError as error:
                failed[case.name] = str(error)
                log.error("%s", failed[case.name])
                continue
            if predictor.was_trained_on_last():
                trained_on.append(case.name)
            try:
                header = mask_header(case.images[0], predictor.readers)
                write_mask(mask, header, mask_path(output, case), make_mark(maker, case, mask))
            except WriteError as error:
                told = f"{done - len(failed)} of {len(cases)} masks are there, and --skip-existing keeps them"
                raise WriteError(error.errno, f"{error.strerror}; {told}", str(output)) from None
        progress(len(cases), len(cases))
    log.log(RESULT, "%s: %d masks (labels: %s)", output, len(cases) - len(failed), predictor.labels)
    if trained_on:
        log.warning(
            "%d of %d images were trained on (%s): their masks do not show how well new cases are segmented",
            len(trained_on),
            len(cases),
            some_of(trained_on),
        )
    return failed


def mask_header(image: Path, readers: Readers) -> Any:
    """The NIfTI header of a mask: the geometry of its image, and nothing else of it.

    Args:
        image: the (first) file of the image. Of a NIfTI file, the mask gets the affines, their codes and the unit; of
            another file, the affine in mm.
        readers: of the image.
    """
    if not image.name.lower().endswith(SUFFIXES):
        geometry = readers.read_geometry(image)
        empty = nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), geometry.affine)
        empty.set_qform(geometry.affine, code=1)
        empty.set_sform(geometry.affine, code=1)
        empty.header.set_xyzt_units("mm")
        return empty.header
    source = read_header(image).header
    header = type(source)()
    header.set_data_dtype(np.uint8)
    for name in GEOMETRY_FIELDS:
        header[name] = source[name]
    header["pixdim"][:4] = source["pixdim"][:4]
    if header["pixdim"][0] not in (-1, 1):  # the handedness of the qform; nibabel refuses the 0 that stands for 1
        header["pixdim"][0] = 1
    return header


def write_mask(mask: NDArray[np.uint8], header: Any, target: Path, mark: Mark) -> None:
    """Write a mask.

    Args:
        mask: (X, Y, Z).
        header: of `mask_header`.
        target: the file.
        mark: the origin of the mask, for the header.
    """
    header["descrip"] = str(mark).encode()
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = kind(mask, header.get_best_affine(), header)
    with whole_file(target) as temporary:
        nib.save(image, temporary)


def _keep_inputs(cases: Sequence[Case], inputs: Path, output: Path) -> None:
    """Refuse to write over the images themselves, or among them."""
    for case in cases:
        for path in case.images:
            if path.resolve() == mask_path(output, case).resolve():
                raise UserError(f"{output}: the masks would replace the input images: choose another --output")
    if inputs.is_dir() and inputs.resolve() == output.resolve():
        raise UserError(
            f"{output}: the masks would lie among the images, and be taken for images the next time: choose another"
            " --output"
        )
