"""The choice of a post-processing on the masks that evaluations of runs have kept. No network is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from fusionseg.data.formats.case import Case
from fusionseg.data.formats.case_reader import read_grid, read_label
from fusionseg.data.formats.dataset import Dataset
from fusionseg.data.formats.geometry import voxel_sizes
from fusionseg.data.formats.image_digest import ImageSet
from fusionseg.data.formats.image_file import VolumeError
from fusionseg.data.formats.problems import CaseError
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.data.preprocessing.case_digests import digests_of
from fusionseg.data.preprocessing.prepare import open_configured
from fusionseg.inference.evaluation.opening import EvaluationOptions, OpenedEvaluation, open_evaluation
from fusionseg.inference.evaluation.scoring import annotated_outputs
from fusionseg.inference.mask_formats.choice import FORMATS
from fusionseg.inference.masks import mask_path, read_origin
from fusionseg.inference.postprocessing.choice import CaseTrial, Choice, choose, dice_with, try_candidates
from fusionseg.inference.postprocessing.files import write_postprocessing
from fusionseg.inference.postprocessing.steps import PostProcessing
from fusionseg.inference.predictor import PredictOptions
from fusionseg.observability.progress import counting_progress
from fusionseg.runs.cases.split import read_split
from fusionseg.runs.evaluations import MASKS, read_scores
from fusionseg.runs.json_files import JsonObject, finite_or_none
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import writable_folder
from fusionseg.utils.means import nanmean
from fusionseg.utils.tables import counted, fixed_number, markdown_table

_FORMAT = FORMATS["nifti"]


@dataclass(frozen=True)
class _EvaluatedRun:
    """A run with the masks of its own validation cases."""

    opened: OpenedEvaluation
    dataset: Dataset
    scheme: LabelScheme
    cases: tuple[Case, ...]
    """Those that the run was not trained on."""
    images: tuple[str, ...]
    """The digest of the image of each case."""


def choose_for_runs(runs: Sequence[Path], checkpoint: str, overrides: Sequence[str] = ()) -> Choice:
    """Choose one post-processing for runs of one configuration, and write it into each run folder.

    With runs of several folds, the steps are also chosen for each run without its own validation cases, so that
    `fusionseg evaluate --postprocess auto` can score these cases by a choice that they had no part in.

    Args:
        runs: run folders, such as the folds of a cross-validation.
        checkpoint: the weights of the evaluations, "last" or "best".
        overrides: `key.path=value` settings, such as data.root.

    Raises:
        UserError: a run has no complete evaluation with masks, the runs differ, or a case cannot be read.
        WriteError: a file cannot be written.
    """
    for run in runs:
        writable_folder(run, "postprocess")
    evaluated = _open(runs, checkpoint, overrides)
    names = evaluated[0].scheme.output_names
    pairs = [(run, case) for run in evaluated for case in run.cases]
    trials = []
    with counting_progress("post-processing") as progress:
        for done, (one, case) in enumerate(pairs):
            progress(done, len(pairs))
            trials.append(_trial(one, case))
        progress(len(pairs), len(pairs))
    without_own = _choose_without_own(evaluated, trials)
    choice = replace(choose(trials, names), held_out=_held_out(evaluated, trials, without_own))
    about = _about(choice, evaluated, checkpoint)
    for one, steps in zip(evaluated, without_own, strict=True):
        write_postprocessing(one.opened.run, choice.chosen, about, steps)
    return choice


def _choose_without_own(runs: Sequence[_EvaluatedRun], trials: Sequence[CaseTrial]) -> list[PostProcessing | None]:
    """Choose the steps for each run on the images that are not its own; None for a run without such images."""
    images = [image for run in runs for image in run.images]
    found: list[PostProcessing | None] = []
    for run in runs:
        own = ImageSet.of(run.images)
        others = [trial for trial, image in zip(trials, images, strict=True) if image not in own]
        found.append(choose(others, run.scheme.output_names).chosen if run.images and others else None)
    return found


def _held_out(
    runs: Sequence[_EvaluatedRun], trials: Sequence[CaseTrial], without_own: Sequence[PostProcessing | None]
) -> NDArray[np.float64] | None:
    """The Dice of each case with the steps that were chosen without it; None if a run has no such steps."""
    remaining = iter(trials)
    parts = []
    for run, steps in zip(runs, without_own, strict=True):
        own = list(islice(remaining, len(run.cases)))
        if own and steps is None:
            return None
        if own and steps is not None:
            parts.append(dice_with(own, run.scheme.output_names, steps))
    return np.concatenate(parts)


def choice_table(choice: Choice, runs: Sequence[Path]) -> str:
    """Format a choice as Markdown: the Dice of each class before and after, and the number of cases that changed.

    Args:
        choice: the choice.
        runs: whose masks it was made on.
    """
    shown = [choice.before, choice.after, *([] if choice.held_out is None else [choice.held_out])]
    heads = ["Dice", "after", "held out"][: len(shown)]
    rows = [["class", "post-processing", *heads, "cases", "better", "worse"]]
    for index, name in enumerate(choice.names):
        before, after = choice.before[:, index], choice.after[:, index]
        counts = [int(np.count_nonzero(~np.isnan(before))), *_changes(before, after)]
        means = [fixed_number(nanmean(list(values[:, index])), 4) for values in shown]
        rows.append([name, str(choice.chosen.steps.get(name, "-")), *means, *map(str, counts)])
    means = [fixed_number(_mean(values), 4) for values in shown]
    foreground = "largest component of the foreground" if choice.chosen.largest_foreground else "-"
    rows.append(["mean", foreground, *means, str(len(choice.before)), "", ""])
    where = f"{counted(len(choice.before), 'validation case')} of {counted(len(runs), 'run')}"
    notes = [f"chosen on {where}; the Dice after it is optimistic, as the same cases chose it"]
    if choice.held_out is None:
        notes.append("with the runs of other folds too, each fold is also scored by a choice on the others")
    else:
        notes.append("held out: the cases of each run, by the steps that were chosen on the cases of the others")
    return "\n".join([markdown_table(rows), *notes])


def _open(runs: Sequence[Path], checkpoint: str, overrides: Sequence[str]) -> list[_EvaluatedRun]:
    """Open the evaluations of runs.

    Raises:
        UserError: with the problems of all runs.
    """
    options = EvaluationOptions(PredictOptions(checkpoint=checkpoint), overrides)
    opened, problems = [], []
    for run in runs:
        one = open_evaluation(run, options)
        if one.config.task_info.evaluation != "masks":
            problems.append(f"{run}: is a {one.config.task_info.name}, which predicts no masks")
        elif not one.is_current():
            weights = "" if checkpoint == "last" else f" --checkpoint {checkpoint}"
            problems.append(f"{run}: has no complete evaluation with masks; fusionseg evaluate {run}{weights} makes it")
        opened.append(one)
    if problems:
        raise UserError(problems)
    found = [_evaluated(one) for one in opened]
    first = found[0]
    for other in found[1:]:
        if other.scheme.output_names != first.scheme.output_names or _model(other) != _model(first):
            problems.append(
                f"{other.opened.run}: has another network or other classes than {first.opened.run}; choose for the runs"
                " of each configuration by a command of its own"
            )
    if not any(one.cases for one in found):
        problems.append("all cases of the evaluations were trained on; a choice on them would not hold for new cases")
    if problems:
        raise UserError(problems)
    return found


def _evaluated(opened: OpenedEvaluation) -> _EvaluatedRun:
    """Find the cases of an evaluation.

    Raises:
        UserError: the data set has other classes than at the training, or lacks a case.
    """
    dataset, scheme = open_configured(opened.config.data), read_split(opened.run).scheme
    if dataset.scheme.names != scheme.names:
        raise UserError(
            f"{dataset.root}: has the labels {list(dataset.scheme.names)}, and {opened.run} was trained on"
            f" {list(scheme.names)}"
        )
    labelled = {case.name: case for case in (*dataset.training, *dataset.testing) if case.label is not None}
    names = dict.fromkeys(score.case for score in read_scores(opened.folder) if score.trained_on == "no")
    if missing := [name for name in names if name not in labelled]:
        raise UserError(f"{dataset.root}: has no case {missing[0]}, which {opened.folder} has scored; evaluate again")
    cases = tuple(labelled[name] for name in names)
    return _EvaluatedRun(opened, dataset, scheme, cases, _images_of(opened, dataset, cases))


def _images_of(opened: OpenedEvaluation, dataset: Dataset, cases: Sequence[Case]) -> tuple[str, ...]:
    """The digest of the image of each case, as the run recorded it. A case that was renamed is read.

    Raises:
        UserError: such a case cannot be read.
    """
    recorded = {case.name: case.image for case in read_split(opened.run).validation}
    renamed = digests_of([case for case in cases if case.name not in recorded], dataset)
    known = {**recorded, **{name: digests.image for name, digests in renamed.items()}}
    if missing := [case for case in cases if case.name not in known]:
        raise UserError(f"{missing[0].images[0]}: cannot be read; fusionseg check {dataset.root} names the problem")
    return tuple(known[case.name] for case in cases)


def _model(run: _EvaluatedRun) -> Any:
    return run.opened.config.to_dict()["model"]


def _trial(run: _EvaluatedRun, case: Case) -> CaseTrial:
    """Try all candidates on the mask of a case.

    Raises:
        UserError: the mask or the label cannot be used.
    """
    path, readers = mask_path(run.opened.folder / MASKS, case, _FORMAT), run.dataset.readers
    again = "evaluate again"
    try:
        if read_origin(path, _FORMAT) is None:
            raise UserError(f"{path}: was not written by fusionseg, or was changed since; {again}")
        outputs = _outputs(np.asarray(nib.load(path).dataobj), run.scheme)
        assert case.label is not None
        grid = read_grid(case.images, readers)
        label = read_label(case.label, grid, run.dataset.scheme, readers)
    except VolumeError as error:
        raise UserError(f"{path}: {error.message}; {again}") from error
    except CaseError as error:
        raise UserError([str(problem) for problem in error.problems]) from error
    return try_candidates(outputs, label, annotated_outputs(case, run.scheme), run.scheme, voxel_sizes(grid.affine))


def _outputs(values: NDArray[Any], scheme: LabelScheme) -> NDArray[Any]:
    """The outputs of the network that a mask shows: class indices, or a mask of each region.

    Raises:
        UserError: the values do not tell the regions.
    """
    if unknown := scheme.unknown([float(value) for value in np.unique(values)]):
        raise UserError(f"the value {unknown[0]:g} of a region is that of no class: regions cannot be told from masks")
    indices = scheme.to_indices(values)
    return scheme.membership_of_indices[:, indices] if scheme.sigmoid else indices


def _about(choice: Choice, runs: Sequence[_EvaluatedRun], checkpoint: str) -> JsonObject:
    """The cases of a choice and its effect on them, for the file."""
    dice: JsonObject = {}
    for when, values in (("before", choice.before), ("after", choice.after), ("held_out", choice.held_out)):
        if values is None:
            continue
        classes = {name: nanmean(list(values[:, index])) for index, name in enumerate(choice.names)}
        dice[when] = {"mean": _mean(values), "classes": classes}
    changed = {
        name: dict(zip(("better", "worse"), _changes(choice.before[:, k], choice.after[:, k]), strict=True))
        for k, name in enumerate(choice.names)
    }
    members = [
        {"run": str(run.opened.run.resolve()), "evaluation": run.opened.folder.name, "cases": len(run.cases)}
        for run in runs
    ]
    content = {
        "cases": len(choice.before),
        "checkpoint": checkpoint,
        "dice": dice,
        "changed": changed,
        "runs": members,
        "images": sorted({image for run in runs for image in run.images}),
    }
    plain: JsonObject = finite_or_none(content)
    return plain


def _mean(dice: NDArray[np.float64]) -> float:
    """Mean over the classes of their means over the cases."""
    return nanmean([nanmean(list(dice[:, index])) for index in range(dice.shape[1])])


def _changes(before: NDArray[np.float64], after: NDArray[np.float64]) -> tuple[int, int]:
    """Numbers of cases with a higher and a lower Dice. A case whose last false voxels were removed is a better one."""
    better = (after > before) | (np.isnan(after) & ~np.isnan(before))
    return int(better.sum()), int((after < before).sum())
