"""Prediction of image files: masks as NIfTI files, in the geometry of their images."""

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
from fusionseg.inference.masks import (
    MaskOrigin,
    cases_without_mask,
    mask_path,
    origin_of,
    predictor_hash,
    refuse_same_file,
)
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
"""Fields of a NIfTI header that a mask takes from its image, beside `pixdim`."""


def predict(
    runs: Sequence[Path], inputs: Path, output: Path, options: PredictOptions, *, skip_existing: bool = False
) -> dict[str, str]:
    """Predict images by a run, or by several runs as an ensemble.

    Args:
        runs: run folders or checkpoint files.
        inputs: an image file, or a folder of images.
        output: the folder for the masks.
        options: the options of the prediction.
        skip_existing: see `predict_files`.

    Returns:
        The problem of each case that failed, by its name.

    Raises:
        UserError: see `check_output`, `Predictor` and `predict_files`.
        WriteError: see `predict_files`.
    """
    check_output(output)
    return predict_files(Predictor(runs, options), inputs, output, skip_existing=skip_existing)


def check_output(output: Path) -> None:
    """Refuse an output that is a file, or a folder of a data set. Call this before the networks are loaded.

    Raises:
        UserError: the output cannot be used.
    """
    if os.path.exists(output) and not os.path.isdir(output):
        raise UserError(f"{output}: is a file; --output names the folder that receives the masks")
    refuse_dataset_folder(output, "--output")


def predict_files(predictor: Predictor, inputs: Path, output: Path, *, skip_existing: bool = False) -> dict[str, str]:
    """Predict images, and write their masks as `output`/<case>.nii.gz.

    Args:
        predictor: the network, or an ensemble.
        inputs: an image file, or a folder of images.
        output: the folder for the masks.
        skip_existing: keep masks that the same runs and options made; see `cases_without_mask`.

    Returns:
        The problem of each case that failed, by its name. All other cases have their mask.

    Raises:
        UserError: the output cannot be written, or holds files that must not be replaced.
        WriteError: a mask could not be written, for example on a full disk. The masks that were written stay.
    """
    cases = find_inputs(inputs, len(predictor.channels), predictor.readers)
    for note in foreign_files(inputs, predictor.readers):
        log.warning("%s", note)
    _refuse_input_folder(cases, inputs, output)
    made_by = predictor_hash(predictor)
    due = cases_without_mask(cases, output, made_by, skip_existing=skip_existing)
    if due:
        writable_folder(output, "--output")
        refuse_same_file(due, output)
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
                write_mask(mask, header, mask_path(output, case), origin_of(mask, case, made_by))
            except WriteError as error:
                written = f"{done - len(failed)} of {len(cases)} masks are there, and --skip-existing keeps them"
                raise WriteError(error.errno, f"{error.strerror}; {written}", str(output)) from None
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
    """Make the NIfTI header of a mask, which takes the geometry of the image and no other field.

    Args:
        image: the (first) file of the image. Of a NIfTI file, the mask gets the affines, their codes and the unit; of
            another file, the affine in mm.
        readers: the readers of image formats.
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
    if header["pixdim"][0] not in (-1, 1):  # the handedness of the qform: 0 means 1, and nibabel refuses it
        header["pixdim"][0] = 1
    return header


def write_mask(mask: NDArray[np.uint8] | NDArray[np.uint16], header: Any, target: Path, origin: MaskOrigin) -> None:
    """Write a mask as a NIfTI file, with its origin in the header.

    Args:
        mask: (X, Y, Z).
        header: the result of `mask_header`; its field `descrip` is set.
        target: the file.
        origin: the origin of the mask, for the header.
    """
    header["descrip"] = str(origin).encode()
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = kind(mask, header.get_best_affine(), header)
    with whole_file(target) as temporary:
        nib.save(image, temporary)


def _refuse_input_folder(cases: Sequence[Case], inputs: Path, output: Path) -> None:
    """Refuse an output folder in which masks would replace the images, or lie among them.

    Raises:
        UserError: the folder cannot be used.
    """
    for case in cases:
        for path in case.images:
            if path.resolve() == mask_path(output, case).resolve():
                raise UserError(f"{output}: the masks would replace the input images: choose another --output")
    if inputs.is_dir() and inputs.resolve() == output.resolve():
        raise UserError(
            f"{output}: the masks would lie among the images, and the next prediction would read them as images:"
            " choose another --output"
        )
