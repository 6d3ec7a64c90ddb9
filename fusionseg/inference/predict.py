"""Prediction of images on disk: masks as files, in the geometry of their images."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fusionseg.data.formats.case import Case
from fusionseg.data.formats.image_file import VolumeError
from fusionseg.data.formats.problems import CaseError
from fusionseg.data.formats.readers import Readers
from fusionseg.data.inputs.inputs import InputOptions, Inputs, find_inputs
from fusionseg.inference.dataset_folders import refuse_dataset_folder
from fusionseg.inference.mask_formats.choice import CHOICES, choose_format
from fusionseg.inference.mask_formats.mask import Mask
from fusionseg.inference.masks import (
    MAX_LISTED,
    cases_without_mask,
    mask_path,
    origin_of,
    predictor_hash,
    refuse_same_file,
)
from fusionseg.inference.predictor import PredictOptions, Predictor
from fusionseg.observability.progress import counting_progress
from fusionseg.utils.errors import UserError, WriteError, some_of, suggest
from fusionseg.utils.files import user_path, writable_folder
from fusionseg.utils.logs import RESULT
from fusionseg.utils.tables import counted

log = logging.getLogger("fusionseg")


@dataclass(frozen=True)
class FileOptions:
    """The options of a prediction about its files."""

    format_name: str = "nifti"
    """The file format of the masks, one of `CHOICES`."""
    skip_existing: bool = False
    """Keep masks that the same runs and options made; see `cases_without_mask`."""
    inputs: InputOptions = field(default_factory=InputOptions)


@dataclass(frozen=True)
class Predicted:
    """The result of a prediction of files."""

    masks: dict[str, Path] = field(default_factory=dict)
    """The mask of each case by its name; those that were kept are included."""
    failed: dict[str, str] = field(default_factory=dict)
    """The problem of each case without a mask, by its name."""


def predict(
    runs: Sequence[Path], inputs: Path, output: Path, options: PredictOptions, files: FileOptions | None = None
) -> Predicted:
    """Predict images by a run, or by several runs as an ensemble.

    Args:
        runs: run folders or checkpoint files.
        inputs: see `find_inputs`.
        output: the folder for the masks.
        options: the options of the prediction.
        files: the options about the files.

    Raises:
        UserError: see `check_output`, `Predictor` and `predict_files`.
        WriteError: see `predict_files`.
    """
    files = files or FileOptions()
    check_output(output, files)
    return predict_files(Predictor(runs, options), inputs, output, files)


def check_output(output: Path, files: FileOptions) -> None:
    """Refuse an output that is a file, a folder of a data set, or an unknown format, before networks are loaded.

    Args:
        output: the folder for the masks.
        files: the options about the files.

    Raises:
        UserError: the output cannot be used.
    """
    if files.format_name not in CHOICES:
        raise UserError(f"--format: {files.format_name}: no such format ({suggest(files.format_name, CHOICES)})")
    if os.path.exists(output) and not os.path.isdir(output):
        raise UserError(f"{output}: is a file; --output names the folder that receives the masks")
    refuse_dataset_folder(output, "--output")


def predict_files(predictor: Predictor, inputs: Path, output: Path, files: FileOptions | None = None) -> Predicted:
    """Predict images, and write a mask for each case into `output`.

    A case that cannot be read or predicted is reported, and the others are predicted.

    Args:
        predictor: the network, or an ensemble.
        inputs: see `find_inputs`.
        output: the folder for the masks.
        files: the options about the files.

    Raises:
        UserError: the inputs are not clear; the output cannot be written, or holds files that must not be replaced.
        WriteError: a mask could not be written, for example on a full disk. The masks that were written stay.
    """
    files, inputs = files or FileOptions(), user_path(str(inputs))
    options = replace(files.inputs, missing_channels=predictor.missing_channels)
    found = find_inputs(inputs, predictor.channels, predictor.readers, options)
    cases = found.cases
    _refuse_input_folder(found, inputs, output, files.format_name)
    _check_format(cases, files.format_name, predictor.readers)
    made_by = predictor_hash(predictor)
    due = cases_without_mask(cases, output, made_by, format_name=files.format_name, skip_existing=files.skip_existing)
    if due:
        writable_folder(output, "--output")
        refuse_same_file(due, output)
    log.info("%s: %s", found.source, counted(len(cases), "case"))
    for note in found.notes:
        log.warning("%s", note)
    failed = _predict_cases(predictor, found, due, output, files.format_name, made_by)
    masks = {
        case.name: mask_path(output, case, choose_format(files.format_name, case.images[0]))
        for case in cases
        if case.name not in failed
    }
    labels = some_of([f"{value} {name}" for value, name in sorted(predictor.value_names.items())])
    log.log(RESULT, "%s: %s (labels: %s)", output, counted(len(masks), "mask"), labels)
    if failed:
        log.error("%d of %d inputs have no mask: %s", len(failed), len(cases), some_of(list(failed)))
    return Predicted(masks, failed)


def _predict_cases(
    predictor: Predictor, found: Inputs, due: Sequence[Case], output: Path, format_name: str, made_by: str
) -> dict[str, str]:
    """Predict cases and write their masks.

    Args:
        due: the cases of `found` that need a mask.
        made_by: the result of `predictor_hash`.

    Returns:
        The problem of each case that failed, by its name.
    """
    failed: dict[str, str] = {}
    trained_on: list[str] = []
    count = len(found.cases)
    with counting_progress("predicting") as progress:
        for done, case in enumerate(due, start=count - len(due)):
            progress(done, count)
            try:
                is_known = _predict_case(predictor, case, found.channels, output, format_name, made_by)
            except (CaseError, VolumeError) as error:
                text = str(error) if isinstance(error, CaseError) else f"{case.images[0]}: {error}"
                failed[case.name] = text
                log.error("%s", text)
                continue
            except WriteError as error:
                written = f"{done - len(failed)} of {count} masks are there, and --skip-existing keeps them"
                raise WriteError(error.errno, f"{error.strerror}; {written}", str(output)) from None
            if is_known:
                trained_on.append(case.name)
        progress(count, count)
    if trained_on:
        log.warning(
            "%d of %d images were trained on (%s): their masks do not show how well new cases are segmented",
            len(trained_on),
            count,
            some_of(trained_on),
        )
    return failed


def _predict_case(
    predictor: Predictor, case: Case, channels: Sequence[int] | None, output: Path, format_name: str, made_by: str
) -> bool:
    """Predict a case, write its mask, and tell whether its image was trained on.

    Raises:
        CaseError: the image cannot be read or predicted.
        VolumeError: the mask cannot be written in this format.
        WriteError: the file cannot be written.
    """
    loaded = predictor.load(case.images, channels)
    values = predictor.scheme.to_mask(predictor.outputs_of(loaded))
    mask_format = choose_format(format_name, case.images[0])
    mask = Mask(values, predictor.value_names, case.images[0], predictor.readers)
    mask_format.write(mask, mask_path(output, case, mask_format), lambda digest: str(origin_of(case, made_by, digest)))
    return predictor.was_trained_on(loaded)


def _check_format(cases: Sequence[Case], format_name: str, readers: Readers) -> None:
    """Refuse a format of masks that does not suit the images, or whose packages are not installed.

    Images that cannot be read are no fault of the format, and are reported when they are predicted.

    Raises:
        UserError: with all such images.
    """
    problems = []
    for case in cases:
        try:
            choose_format(format_name, case.images[0]).check(case.images[0], readers)
        except VolumeError as error:
            if error.code == "package":
                raise UserError(f"--format {format_name}: {error}") from error
            if error.code == "format":
                problems.append(f"  {case.images[0]}: {error}")
    if problems:
        more = [f"  ... and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
        raise UserError([f"--format {format_name}: does not suit these inputs:", *problems[:MAX_LISTED], *more])


def _refuse_input_folder(found: Inputs, inputs: Path, output: Path, format_name: str) -> None:
    """Refuse an output folder in which masks would replace the images, or would be read as images the next time.

    Raises:
        UserError: the folder cannot be used.
    """
    folder = output.resolve()
    for case in found.cases:
        target = mask_path(output, case, choose_format(format_name, case.images[0])).resolve()
        if any(path.resolve() == target for path in case.images):
            raise UserError(f"{output}: the masks would replace the input images: choose another --output")
    again = "and the next prediction would read them as images: choose another --output"
    series = {path.resolve() for case in found.cases for path in case.images if path.is_dir()}
    parents = {path.resolve().parent for case in found.cases for path in case.images if path not in (inputs, *series)}
    if folder in parents or (inputs.is_dir() and folder == inputs.resolve()):
        raise UserError(f"{output}: the masks would lie among the images, {again}")
    below = [*series, *([found.searched.resolve()] if found.searched is not None else [])]
    if inside := next((place for place in below if folder.is_relative_to(place)), None):
        raise UserError(f"{output}: is in the folder of the inputs, {inside}, {again}")
