"""The split of a data set into training and validation cases, the same for all tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import cast

from fusionseg.config.data.dataset import DataConfig
from fusionseg.data.formats.case import Case
from fusionseg.data.formats.dataset import Dataset
from fusionseg.utils.errors import UserError


def split_dataset(dataset: Dataset, settings: DataConfig, *, needs_labels: bool) -> tuple[list[Case], list[Case]]:
    """List the training and validation cases of the configured fold.

    Only the labelled training cases are divided into folds, so that the validation cases are the same for a
    segmentation and for a pre-training. A task that needs no labels also trains on the training cases without a label
    and on the test cases without a label. Labelled test cases are never trained on. If no training case has a label,
    such a task divides all training cases.

    Args:
        dataset: to split.
        settings: the section `data`.
        needs_labels: whether the task uses labelled cases only, see `TaskInfo`.

    Raises:
        UserError: there are no cases to split, or not so many folds.
    """
    labelled = [case for case in dataset.training if case.label is not None]
    if not labelled and needs_labels:
        raise UserError(f"{dataset.root}: has no labelled training cases: segmentation needs a label for each image")
    unlabelled_tests = [case for case in dataset.testing if case.label is None]
    divided = labelled or list(dataset.training) or unlabelled_tests
    if not divided:
        raise UserError(
            f"{dataset.root}: all its cases are labelled test cases, which are never trained on: list images for"
            " training"
        )
    stated = folds_are_stated(divided)
    if not needs_labels and stated and len({case.fold == settings.fold for case in divided}) == 1:
        # All labelled cases are on one side, so no segmentation has this split; the other cases fill the other side.
        inside = [case for case in divided if case.fold == settings.fold]
        divided = [case for case in dataset.training if case.fold != settings.fold or not inside or case in inside]
    if settings.folds == 1 and not stated:  # training and validation are the same
        divided = sorted(divided, key=lambda case: case.name)[: settings.train_cases]
    train, validation = split_folds(divided, settings.folds, settings.fold, settings.fold_seed, str(dataset.root))
    if not needs_labels:
        known = {case.name for case in divided}
        others = [case for case in (*dataset.training, *unlabelled_tests) if case.name not in known]
        # The validation list may have cases without a label, and these are not trained on.
        held_out = settings.fold if stated else None
        train += [case for case in others if held_out is None or case.fold != held_out]
    return train[: settings.train_cases], validation


def folds_are_stated(cases: Sequence[Case]) -> bool:
    """Test that the data set states the fold of each case. Then `data.folds` and `data.fold_seed` have no effect.

    Args:
        cases: of the data set.
    """
    return bool(cases) and all(case.fold is not None for case in cases)


def split_folds(
    cases: Sequence[Case], folds: int, fold: int, seed: int, where: str = "the data set"
) -> tuple[list[Case], list[Case]]:
    """List the training and validation cases of one fold, each sorted by name.

    Folds that the data set states are used as they are. Otherwise every case validates in exactly one fold, the sizes
    of the folds differ by at most one, and the folds depend on the seed and the names only. With one fold, all cases
    are trained on and validated on.

    Args:
        cases: to split.
        folds: number of folds; it has no effect on stated folds.
        fold: index of the fold whose cases validate.
        seed: of the folds; it has no effect on stated folds.
        where: the data set, for messages.

    Raises:
        UserError: there is no such fold, or there are not enough cases.
    """
    ordered = sorted(cases, key=lambda case: case.name)
    if folds_are_stated(ordered):
        assigned = {case.name: cast(int, case.fold) for case in ordered}
        _check_stated(sorted(set(assigned.values())), fold, where)
    else:
        _check_drawn(len(ordered), folds, fold, where)
        if folds == 1:
            return ordered, list(ordered)

        # A hash instead of a generator, because the split must be the same with every version of numpy and Python.
        def rank(case: Case) -> bytes:
            return hashlib.sha256(f"{seed}:{case.name}".encode()).digest()

        assigned = {case.name: i % folds for i, case in enumerate(sorted(ordered, key=rank))}
    train = [case for case in ordered if assigned[case.name] != fold]
    return train, [case for case in ordered if assigned[case.name] == fold]


def _check_stated(present: list[int], fold: int, where: str) -> None:
    if fold not in present:
        raise UserError(
            f"data.fold={fold}: no labelled case of {where} is in it, the folds that the datalist states are"
            f" {present}; set data.fold to one of them"
        )
    if len(present) < 2:
        raise UserError(
            f"data.fold={fold}: every case of {where} is in it, none is left to train on; state a second fold in the"
            " datalist, or state none (no `fold`, no validation list): data.folds then draws them, and data.folds=1"
            " trains and validates on the same cases"
        )


def _check_drawn(count: int, folds: int, fold: int, where: str) -> None:
    problems = []
    if folds < 1:
        problems.append(f"data.folds={folds}: at least 1 is needed; set data.folds")
    elif not 0 <= fold < folds:
        problems.append(f"data.fold={fold}: with data.folds={folds} it goes from 0 to {folds - 1}; set data.fold")
    if count < folds:
        same = "data.folds=1 (data.fold=0) trains and validates on the same, to overfit or to use every case"
        fewer = f"set data.folds to {count} or less (data.fold below it); " if count > 1 else ""
        cases = f"{count} cases" if count > 1 else "1 case"
        problems.append(
            f"data.folds={folds}: {where} has only {cases} to split, and each fold needs one; {fewer}{same}"
        )
    if problems:
        raise UserError(problems)
