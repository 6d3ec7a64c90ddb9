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
from fusionseg.data.inputs.inputs import InputOptions, find_inputs
from fusionseg.inference.calls.call import PredictionCall
from fusionseg.inference.calls.output_checks import (
    check_format,
    prepare_output,
    refuse_input_folder,
    refuse_names_of_record,
)
from fusionseg.inference.calls.probability_files import ProbabilityFiles
from fusionseg.inference.calls.share import Share
from fusionseg.inference.calls.stages import PredictionStages
from fusionseg.inference.dataset_folders import refuse_dataset_folder
from fusionseg.inference.mask_formats.choice import CHOICES, choose_format
from fusionseg.inference.mask_formats.probabilities import PROBABILITY_FORMATS
from fusionseg.inference.masks import (
    cases_without_mask,
    mask_path,
    predictor_hash,
    weight_digests,
)
from fusionseg.inference.postprocessing.files import (
    NONE,
    StoredPostProcessing,
    asked_postprocessing,
    find_postprocessing,
    refuse_other_classes,
)
from fusionseg.inference.predictor import PredictOptions, Predictor
from fusionseg.runs.json_files import JsonObject
from fusionseg.runs.predictions import PredictionRecord, record_path
from fusionseg.utils.errors import UserError, some_of, suggest
from fusionseg.utils.files import user_path
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
    probabilities: str | None = None
    """The file format of the probabilities beside the masks, one of `PROBABILITY_FORMATS`; None for masks alone."""
    postprocess: str = NONE
    """The post-processing of the masks: `AUTO` for that of the runs, `NONE`, or the path of a file."""
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
    if files.probabilities is not None and files.probabilities not in PROBABILITY_FORMATS:
        valid = suggest(files.probabilities, PROBABILITY_FORMATS)
        raise UserError(f"--probabilities: {files.probabilities}: no such format ({valid})")
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
    refuse_input_folder(found, inputs, output, files.format_name)
    check_format(found.cases, files.format_name, predictor.readers)
    record = record_path(output, files.share.index, files.share.count)
    refuse_names_of_record(found.cases, output, files.format_name, record)
    cases = files.share.of(found.cases, predictor.readers)
    digests = weight_digests(predictor)
    stored = _postprocessing(predictor, files.postprocess)
    steps = None if stored is None else stored.steps
    made_by = predictor_hash(predictor, digests, steps.to_json() if steps else None)
    probabilities = None if files.probabilities is None else ProbabilityFiles(output, files.probabilities)
    if probabilities is not None:
        probabilities.check(found.cases, files.format_name)
    # The files of all cases are looked at, so that every part of a call is refused for the same reason.
    own = {case.name for case in cases}
    due = cases_without_mask(
        found.cases,
        output,
        made_by,
        format_name=files.format_name,
        skip_existing=files.skip_existing,
        lacks_files=lambda case, mask: probabilities is not None and not probabilities.is_made_with(case, mask),
    )
    due = [case for case in due if case.name in own]
    if due:
        prepare_output(due, output, record, is_shared=files.share.count > 1)
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
            {case.name: _written_files(case, masks[case.name], probabilities) for case in cases},
            PredictionStages(predictor, found.channels, output, files.format_name, made_by, probabilities, steps),
            PredictionRecord(record, _description(predictor, inputs, files, digests, stored)),
            output,
        )
        call.run(shown=files.share.launch.rank == 0)
        failed = call.failed
        _warn_of_trained(call.trained_on, len(cases))
    masks = {name: path for name, path in masks.items() if name not in failed}
    labels = some_of([f"{value} {name}" for value, name in sorted(predictor.value_names.items())])
    log.log(RESULT, "%s: %s (labels: %s)", output, counted(len(masks), "mask"), labels)
    if failed:
        log.error("%d of %d inputs have no mask: %s", len(failed), len(cases), some_of(list(failed)))
    return Predicted(masks, failed)


def _postprocessing(predictor: Predictor, asked: str) -> StoredPostProcessing | None:
    """The post-processing that the options ask for, with a message about it, or about one that is not applied.

    Raises:
        UserError: see `asked_postprocessing`.
    """
    runs = [member.path for member in predictor.members]
    stored = asked_postprocessing(asked, runs)
    if stored is not None:
        refuse_other_classes(stored.path, stored.steps, predictor.scheme)
        log.info("post-processing of %s: %s", stored.path, stored)
        return stored
    with suppress(UserError):  # a damaged file does not matter where none is asked for
        if found := [one for one in find_postprocessing(runs) if one.steps]:
            log.info("%s is not applied: %s; --postprocess auto applies it", found[0].path, found[0])
    return None


def _written_files(case: Case, mask: Path, probabilities: ProbabilityFiles | None) -> dict[str, Path]:
    return {"mask": mask, **({} if probabilities is None else {"probabilities": probabilities.path(case)})}


def _warn_of_trained(names: Sequence[str], count: int) -> None:
    if names:
        log.warning(
            "%d of %d images were trained on (%s): their masks do not show how well new cases are segmented",
            len(names),
            count,
            some_of(names),
        )


def _description(
    predictor: Predictor,
    inputs: Path,
    files: FileOptions,
    digests: Sequence[str],
    postprocessing: StoredPostProcessing | None,
) -> JsonObject:
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
        "skip_air": options.skip_air,
        "format": files.format_name,
        "probabilities": files.probabilities,
        "postprocessing": None if postprocessing is None else postprocessing.steps.to_json(),
        "cases": files.inputs.cases,
        "base_dir": files.inputs.base_dir,
        "skip_existing": files.skip_existing,
        "part": str(files.share) if files.share.count > 1 else None,
        "labels": {str(value): name for value, name in sorted(predictor.value_names.items())},
    }


def _device_text(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
