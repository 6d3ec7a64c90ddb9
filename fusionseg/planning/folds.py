"""The folds of a plan, as the training splits the cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fusionseg.config.data.dataset import DataConfig
from fusionseg.data.formats.dataset import Dataset
from fusionseg.data.splits.split import folds_are_stated, split_dataset
from fusionseg.data.splits.splits_file import find_listed_folds
from fusionseg.planning.choices import Choice
from fusionseg.planning.cost import MIN_BATCH
from fusionseg.planning.recipe import TrainingSize
from fusionseg.utils.tables import counted

FOLDS = 5


def plan_split(dataset: Dataset, broken: Sequence[str], given: DataConfig) -> tuple[list[Choice], TrainingSize]:
    """Choose the folds, and count the cases of both sides.

    Args:
        dataset: the data set.
        broken: names of the cases that cannot be read.
        given: the section `data` of the request.

    Raises:
        UserError: the cases cannot be split as the command asks.
    """
    usable = replace(dataset, training=tuple(case for case in dataset.training if case.name not in set(broken)))
    total = sum(case.label is not None for case in usable.training)
    is_stated = folds_are_stated(usable.training)
    is_stated |= find_listed_folds(usable, given, stated=is_stated)[0] is not None
    settings = given
    if "folds" not in given.model_fields_set and not is_stated:
        settings = given.model_copy(update={"folds": min(FOLDS, total)})
    split = split_dataset(usable, settings, needs_labels=True)
    size = TrainingSize(len(split.training), len(split.validation), MIN_BATCH)
    sides = f"{counted(size.cases, 'case')} to train, {size.validation_cases} to validate"
    if isinstance(given.fold, str):  # all, or the group that validates
        return [], size
    if is_stated or "folds" in given.model_fields_set:
        reason = f"The data set or the command has the folds: {sides}."
        return [Choice("data.fold", 0, reason)], size
    folds = settings.folds
    if folds == FOLDS:
        reason = f"{FOLDS} folds as in nnU-Net, drawn by names: {sides}."
    elif folds > 1:
        reason = f"There are {total} labelled cases: each fold validates one of them."
    else:
        reason = "There is one labelled case: it is trained and validated on, and scores say nothing about new cases."
    return [Choice("data.folds", folds, reason), Choice("data.fold", 0)], size
