"""Comparison of an exported model with `predict`: masks of real cases, voxel by voxel."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionseg.config import RunConfig
from fusionseg.data.formats.case import Case, missing_channels
from fusionseg.data.formats.case_reader import read_image, read_label
from fusionseg.data.formats.problems import CaseError
from fusionseg.data.formats.readers import Readers
from fusionseg.data.labels.scheme import IGNORE, LabelScheme
from fusionseg.inference.evaluation.cases import evaluation_config, validation_cases
from fusionseg.inference.evaluation.scoring import annotated_outputs
from fusionseg.inference.predictor import Predictor
from fusionseg.runs.json_files import JsonObject
from fusionseg.utils.errors import UserError
from fusionseg.utils.tables import fixed_number, markdown_table

log = logging.getLogger("fusionseg")

PARITY = "parity.json"
LIMIT = 1e-5
"""Largest share of the voxels in which the masks may differ. The programs sum in another order than torch, so that the
last bits of their logits differ, and with them a voxel whose two best classes are equally probable."""
CASE_LIMIT = 3
"""Voxels for each case that may differ in any case: in a small volume, few such voxels are a larger share."""

DICE_LIMIT = 0.01
"""Fall of the Dice of a class, as the mean over cases, above which a program with small weights is warned about."""

DICE_KEYS = ("predict", "program", "difference")

MaskOf = Callable[[Case], NDArray[Any]]


@dataclass(frozen=True)
class CompareCases:
    """The cases of a comparison.

    Args:
        cases: with an image and a label.
        scheme: of their labels.
        readers: of their files.
        which: "validation" or "training" cases of the run.
    """

    cases: Sequence[Case]
    scheme: LabelScheme
    readers: Readers
    which: str


def cases_to_compare(
    run: Path, overrides: Sequence[str], predictor: Predictor, count: int, *, complete: bool
) -> CompareCases:
    """Find the first validation cases of a run; its training cases, if it has no others.

    Args:
        run: the run folder.
        overrides: `key.path=value` settings, such as data.root.
        predictor: of the run.
        count: number of cases.
        complete: leave out the cases that lack a channel.

    Raises:
        UserError: the data set is not found, or the cases have changed.
    """
    config: RunConfig = evaluation_config(run, overrides)
    found = validation_cases(config.data, config.output, predictor.members, include_trained=True)
    names = {case.name for case in found.cases}
    training = [case for case in found.dataset.training if case.label is not None and case.name not in names]
    which, cases = _choose(found.cases, training, complete)
    return CompareCases(cases[:count], found.dataset.scheme, Readers.of(config.data), which)


def _choose(validation: Sequence[Case], training: Sequence[Case], complete: bool) -> tuple[str, Sequence[Case]]:
    """The validation cases; the training cases if there are no others. `complete` is that of `cases_to_compare`."""
    usable, others = (
        [case for case in cases if not (complete and missing_channels(case.images))] for cases in (validation, training)
    )
    return ("validation", usable) if usable else ("training", others)


def compare_masks(found: CompareCases, predict: MaskOf, program: MaskOf) -> JsonObject:
    """Compare the masks of `predict` and of a program.

    Args:
        found: the cases.
        predict: gives the mask of a case by `predict`.
        program: gives the mask of a case by the program.

    Returns:
        For each case the voxels that differ, and the Dice of both masks; the share of all voxels that differ;
        `allowed`, the number of voxels that may differ if nothing but rounding differs; and the mean Dice of both over
        cases and classes, and for each class.
    """
    rows: list[JsonObject] = []
    for case in found.cases:
        try:
            expected, mask = predict(case), program(case)
        except CaseError as error:
            log.warning("%s: is not compared: %s", case.name, error)
            continue
        different = int((expected != mask).sum())
        row: JsonObject = {"case": case.name, "voxels": int(mask.size), "different": different}
        dice = [_dice(found, case, each) for each in (expected, mask)]
        rows.append({**row, "dice_predict": dice[0], "dice_program": dice[1]})
    if not rows:
        return {**not_compared("no case could be predicted"), "which": found.which}
    voxels, different = (sum(row[key] for row in rows) for key in ("voxels", "different"))
    means = {key: _mean(rows, key) for key in ("dice_predict", "dice_program")}
    counts = {"voxels": voxels, "different": different, "share": different / voxels}
    allowed = max(int(LIMIT * voxels), CASE_LIMIT * len(rows))
    shares = {"cases": rows, "which": found.which, **counts, "allowed": allowed}
    return {**shares, **means, "dice_by_class": _dice_by_class(rows)}


def dice_table(parity: JsonObject, weights: str) -> str:
    """A table of the mean Dice by class, of `predict` and of a program, and their difference.

    Args:
        parity: the result of `compare_masks`.
        weights: the type of the program's weights, for the header.
    """
    rows = [["Dice", "cases", "predict", weights, "difference"]]
    for name, values in parity["dice_by_class"].items():
        numbers = [fixed_number(values[key], 4, signed=key == "difference") for key in DICE_KEYS]
        rows.append([name, str(values["cases"]), *numbers])
    return markdown_table(rows)


def fallen_classes(parity: JsonObject) -> list[str]:
    """Names of the classes whose mean Dice by the program is lower by more than `DICE_LIMIT`.

    Args:
        parity: the result of `compare_masks`.
    """
    return [name for name, values in parity["dice_by_class"].items() if values["difference"] < -DICE_LIMIT]


def not_compared(reason: str) -> JsonObject:
    """The result of a comparison without cases.

    Args:
        reason: why there are none.
    """
    counts = {"voxels": 0, "different": 0, "share": None, "allowed": 0}
    return {"cases": [], **counts, "dice_by_class": {}, "not_compared": reason}


def _dice(found: CompareCases, case: Case, mask: NDArray[Any]) -> dict[str, float | None] | None:
    """Dice by class or region, in the geometry of the file; None if the label cannot be used.

    A class that the case does not annotate has none: its mask may be right where the label is silent.
    """
    if case.label is None:
        return None
    try:
        grid = read_image(case.images, readers=found.readers).grid
        label = read_label(case.label, grid, found.scheme, found.readers)
        predicted = found.scheme.to_indices(mask)
    except (CaseError, UserError, ValueError) as error:
        log.warning("%s: has no Dice: %s", case.name, error)
        return None
    known = label != IGNORE
    scores: dict[str, float | None] = {}
    outputs = zip(
        found.scheme.output_names,
        found.scheme.membership_of_indices,
        annotated_outputs(case, found.scheme),
        strict=True,
    )
    for name, members, is_annotated in outputs:
        ours, theirs = members[predicted] & known, members[label] & known
        total = int(ours.sum()) + int(theirs.sum())
        scores[name] = 2 * int((ours & theirs).sum()) / total if total and is_annotated else None
    return scores


def _dice_by_class(rows: Sequence[JsonObject]) -> JsonObject:
    """For each class the mean Dice of both masks over the cases, and the difference.

    A case counts where one of the masks or the label has the class. A mask that rightly lacks it, beside one that has
    it, has a Dice of 1.
    """
    pairs: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, expected in (row["dice_predict"] or {}).items():
            found = (row["dice_program"] or {}).get(name)
            if expected is not None or found is not None:
                pair = (1.0 if expected is None else expected, 1.0 if found is None else found)
                pairs.setdefault(name, []).append(pair)
    result = {}
    for name, values in pairs.items():
        predict, program = (float(mean) for mean in np.mean(values, axis=0))
        means = dict(zip(DICE_KEYS, (predict, program, program - predict), strict=True))
        result[name] = {"cases": len(values), **means}
    return result


def _mean(rows: Sequence[JsonObject], key: str) -> float | None:
    """The mean over cases and classes; None without a value."""
    values = [value for row in rows for value in (row[key] or {}).values() if value is not None]
    return float(np.mean(values)) if values else None
