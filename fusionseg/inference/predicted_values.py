"""Prediction of values for images: a table with a row for each image, of a task that gives values and no masks."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fusionseg.data.formats.case import Case
from fusionseg.data.formats.dataset import open_dataset
from fusionseg.data.formats.problems import CaseError
from fusionseg.data.formats.readers import Readers
from fusionseg.data.inputs.inputs import InputOptions, Inputs, find_inputs
from fusionseg.data.preprocessing.volume import load_volume
from fusionseg.inference.trained_network import TrainedNetwork, inference_device, load_trained
from fusionseg.observability.progress import counting_progress
from fusionseg.training.tasks.choice import build_task
from fusionseg.utils.errors import UserError, some_of
from fusionseg.utils.files import user_path, writable_folder, write_text
from fusionseg.utils.logs import RESULT
from fusionseg.utils.tables import counted

log = logging.getLogger("fusionseg")

TABLE = "predictions.csv"
_FIRST_COLUMNS = ["case", "image"]


@dataclass(frozen=True)
class PredictedValues:
    """The result of a prediction of values."""

    table: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """The problem of each case without values, by its name."""


def predict_values(
    run: Path, inputs: Path, output: Path, *, device: str = "auto", checkpoint: str = "best", options: InputOptions
) -> PredictedValues:
    """Predict the values of images, and write them into predictions.csv of a folder.

    A case that cannot be read is reported, and the others are predicted.

    Args:
        run: a run folder or a checkpoint file, of a task with `gives_values`.
        inputs: see `find_inputs`. A folder or a list is read by the layout of the run's data set, if this is one of the
            user's own.
        output: the folder for the table. A table that an earlier prediction wrote is replaced.
        device: "auto", "cuda" or "cpu".
        checkpoint: "best" or "last".
        options: the options about the inputs.

    Raises:
        UserError: the run has no weights, there are no inputs, or the output cannot be written.
        WriteError: the table could not be written.
    """
    table = output / TABLE
    _refuse_other_file(table)
    network = load_trained(run, inference_device(device), checkpoint)
    found = _find_cases(network, inputs, options)
    writable_folder(output, "--output")
    log.info("%s: %s", found.source, counted(len(found.cases), "case"))
    for note in found.notes:
        log.warning("%s", note)
    predicted = PredictedValues(table)
    trained_on = _predict_cases(network, found, predicted)
    write_text(table, _csv(predicted.rows))
    log.log(RESULT, "%s: %s", table, counted(len(predicted.rows), "row"))
    if trained_on:
        log.warning(
            "%d of %d images were trained on (%s): their values do not show how well new cases are predicted",
            len(trained_on),
            len(found.cases),
            some_of(trained_on),
        )
    if predicted.failed:
        failed = predicted.failed
        log.error("%d of %d inputs have no values: %s", len(failed), len(found.cases), some_of(list(failed)))
    return predicted


def _predict_cases(network: TrainedNetwork, found: Inputs, predicted: PredictedValues) -> list[str]:
    """Predict the cases one by one, and return the names of those that were trained on."""
    config, device = network.config, next(network.model.parameters()).device
    task = build_task(config, network.scheme)
    trained_on = []
    target = config.data.target
    with counting_progress("predicting") as progress, torch.no_grad(), network.precision.autocast():
        for done, case in enumerate(found.cases):
            progress(done, len(found.cases))
            try:
                volume = load_volume(case.images, None, config.data, None, len(network.channels), network.channels)
            except CaseError as error:
                predicted.failed[case.name] = str(error)
                log.error("%s", error)
                continue
            image = torch.from_numpy(volume.image)[None].to(device)
            if found.channels is not None:
                image = image[:, list(found.channels)]
            row: dict[str, Any] = {"case": case.name, "image": str(case.images[0])}
            row |= {f"true {target}": case.columns[target]} if target is not None and target in case.columns else {}
            predicted.rows.append(row | dict(task.predicted_values(network.model, image)))
            if network.split is not None and network.split.was_trained_on(volume.digest):
                trained_on.append(case.name)
        progress(len(found.cases), len(found.cases))
    return trained_on


def _find_cases(network: TrainedNetwork, path: Path, options: InputOptions) -> Inputs:
    """Find the inputs. Those of a data set in a layout of the user's own have their columns."""
    data, path = network.config.data, user_path(str(path))
    readers = Readers.of(data)
    one_image = path.is_file() and readers.is_image_file(path)
    if isinstance(data.layout, str) or one_image:  # a name is a built-in layout
        return find_inputs(path, network.channels, readers, options)
    dataset = open_dataset(
        path, data.layout, images_only=True, readers=readers, base_dir=options.base_dir, missing_channels="refuse"
    )
    cases = _chosen(dataset.training, dataset.testing, options.cases)
    if not cases:
        raise UserError(f"--cases {options.cases}: {path} has no such case; name others")
    return Inputs(cases, f"{path}, read by {data.layout.name}", dataset.notes)


def _chosen(training: Sequence[Case], testing: Sequence[Case], wanted: str | None) -> tuple[Case, ...]:
    chosen = {"test": testing, "training": training, "all": [*training, *testing], None: testing or training}
    return tuple(sorted(chosen[wanted], key=lambda case: case.name))


def _refuse_other_file(table: Path) -> None:
    """Refuse to replace a file that is no table of an earlier prediction.

    Raises:
        UserError: there is such a file.
    """
    if not table.exists():
        return
    start = table.read_bytes()[:100].decode(errors="replace") if table.is_file() else ""
    if not start.startswith(",".join(_FIRST_COLUMNS)):
        raise UserError(f"--output: {table}: is another file, and is not replaced; choose another folder, or move it")


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys([*_FIRST_COLUMNS, *(name for row in rows for name in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
