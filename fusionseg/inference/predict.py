"""Prediction of images on disk: masks as files, in the geometry of their images."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from fusionseg.data.formats.case import Case
from fusionseg.data.formats.image_file import VolumeError
from fusionseg.data.formats.readers import Readers
from fusionseg.data.inputs.inputs import InputOptions, Inputs, find_inputs
from fusionseg.inference.calls.call import PredictionCall
from fusionseg.inference.calls.share import Share
from fusionseg.inference.calls.stages import PredictionStages
from fusionseg.inference.dataset_folders import refuse_dataset_folder
from fusionseg.inference.mask_formats.choice import CHOICES, choose_format
from fusionseg.inference.masks import (
    MAX_LISTED,
    cases_without_mask,
    mask_path,
    predictor_hash,
    refuse_same_file,
    weight_digests,
)
from fusionseg.inference.predictor import PredictOptions, Predictor
from fusionseg.runs.json_files import JsonObject
from fusionseg.runs.predictions import PredictionRecord, record_path, refuse_other_file
from fusionseg.utils.errors import UserError, some_of, suggest
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
    share: Share = field(default_factory=Share)
    """The part of the cases that this process predicts."""


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
    return predict_files(Predictor(runs, options, files.share.launch), inputs, output, files)


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
    _refuse_input_folder(found, inputs, output, files.format_name)
    _check_format(found.cases, files.format_name, predictor.readers)
    _refuse_names_of_record(found.cases, output, files)
    cases = files.share.of(found.cases, predictor.readers)
    digests = weight_digests(predictor)
    made_by = predictor_hash(predictor, digests)
    due = cases_without_mask(cases, output, made_by, format_name=files.format_name, skip_existing=files.skip_existing)
    if due:
        _prepare_output(cases, due, output, files.share)
    log.info("%s: %s", found.source, counted(len(found.cases), "case"))
    for note in found.notes:
        log.warning("%s", note)
    if files.share.count > 1:
        log.log(RESULT, "part %s: %d of %s", files.share, len(cases), counted(len(found.cases), "case"))
    masks = {case.name: mask_path(output, case, choose_format(files.format_name, case.images[0])) for case in cases}
    failed: dict[str, str] = {}
    if due:
        call = PredictionCall(
            cases,
            due,
            {name: {"mask": path} for name, path in masks.items()},
            PredictionStages(predictor, found.channels, output, files.format_name, made_by),
            PredictionRecord(
                record_path(output, files.share.index, files.share.count),
                _description(predictor, inputs, files, digests),
            ),
            output,
        )
        call.run(shown=files.share.index == 0)
        failed = call.failed
        _warn_of_trained(call.trained_on, len(cases))
    masks = {name: path for name, path in masks.items() if name not in failed}
    labels = some_of([f"{value} {name}" for value, name in sorted(predictor.value_names.items())])
    log.log(RESULT, "%s: %s (labels: %s)", output, counted(len(masks), "mask"), labels)
    if failed:
        log.error("%d of %d inputs have no mask: %s", len(failed), len(cases), some_of(list(failed)))
    return Predicted(masks, failed)


def _warn_of_trained(names: Sequence[str], count: int) -> None:
    if names:
        log.warning(
            "%d of %d images were trained on (%s): their masks do not show how well new cases are segmented",
            len(names),
            count,
            some_of(names),
        )


def _prepare_output(cases: Sequence[Case], due: Sequence[Case], output: Path, share: Share) -> None:
    """Make sure that the masks and the record can be written, before anything is predicted.

    Raises:
        UserError: the folder cannot be used.
    """
    refuse_other_file(record_path(output, share.index, share.count))
    if share.count > 1:  # a process must not remove the folder after its check while another one writes there
        with suppress(OSError):  # the check reports it
            output.mkdir(parents=True, exist_ok=True)
    writable_folder(output, "--output")
    refuse_same_file(due, output)


def _refuse_names_of_record(cases: Sequence[Case], output: Path, files: FileOptions) -> None:
    """Refuse a case whose mask has a file of the name of the record.

    Raises:
        UserError: there is such a case.
    """
    record = record_path(output, files.share.index, files.share.count)
    for case in cases:
        mask_format = choose_format(files.format_name, case.images[0])
        if record in mask_format.files(mask_path(output, case, mask_format)):
            raise UserError(
                f"{case.images[0]}: {record.name} would be a file of its mask, and is the record of the prediction:"
                " rename the image, or choose another --format"
            )


def _description(predictor: Predictor, inputs: Path, files: FileOptions, digests: Sequence[str]) -> JsonObject:
    """The entry of a call in the record: what it predicts with, and its options."""
    options = predictor.options
    return {
        "input": str(inputs.absolute()),
        "device": _device_text(predictor.device),
        "precision": sorted({member.precision.name for member in predictor.members}),
        "weights": [
            {"file": str(member.path.absolute()), "step": member.step, "sha256": digest}
            for member, digest in zip(predictor.members, digests, strict=True)
        ],
        "overlap": [predictor.settings(member).overlap for member in predictor.members],
        "tta": options.flips,
        "memory_gb": options.memory_gb,
        "format": files.format_name,
        "cases": files.inputs.cases,
        "base_dir": files.inputs.base_dir,
        "skip_existing": files.skip_existing,
        "part": str(files.share) if files.share.count > 1 else None,
        "labels": {str(value): name for value, name in sorted(predictor.value_names.items())},
    }


def _device_text(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


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
