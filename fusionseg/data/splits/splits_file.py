"""A file of folds in the form of nnU-Net's splits_final.json: a list of {"train": [names], "val": [names]}."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fusionseg.config import DataConfig
from fusionseg.config.data.splits import AUTO, NONE
from fusionseg.data.formats.case import Case
from fusionseg.data.formats.dataset import Dataset
from fusionseg.data.formats.dataset_json import SPLITS_FILE
from fusionseg.data.splits.named_file import NamedFile, read_named_file
from fusionseg.utils.errors import UserError, some_of

_SIDES = ("train", "val")


@dataclass(frozen=True)
class ListedFolds:
    """The folds of a file, checked by themselves.

    Args:
        file: that was read.
        folds: the names of the training and of the validation cases of each fold.
    """

    file: NamedFile
    folds: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]

    def split(
        self, fold: int, cases: Sequence[Case], dataset: Dataset
    ) -> tuple[list[Case], list[Case], tuple[str, ...]]:
        """List the training and validation cases of a fold, each sorted by name, and notes for the log.

        Args:
            fold: index of the fold.
            cases: that the data set has for folds.
            dataset: of the cases, for the messages.

        Raises:
            UserError: there is no such fold; or it names cases that the data set lacks, or that have no label.
        """
        key = self.file.key
        if fold >= len(self.folds):
            last = f"from 0 to {len(self.folds) - 1}" if len(self.folds) > 1 else "only 0"
            raise UserError(f"data.fold={fold}: {key} has {len(self.folds)} folds ({last}); set data.fold")
        known = {case.name: case for case in cases}
        train, validation = self.folds[fold]
        if unknown := [name for name in dict.fromkeys((*train, *validation)) if name not in known]:
            others = {case.name for case in (*dataset.training, *dataset.testing)}
            without = [name for name in unknown if name in others]
            absent = [name for name in unknown if name not in others]
            why = [f"{some_of(absent)} are not in the data set"] if absent else []
            why += [f"{some_of(without)} are not labelled training cases"] if without else []
            raise UserError(
                f"{key}: fold {fold} names {len(unknown)} cases that cannot be used ({'; '.join(why)}); correct the"
                f" names (the data set has {some_of(sorted(known), 3)}), or set data.splits=none to draw folds"
            )
        notes = []
        if unused := sorted(known.keys() - {*train, *validation}):
            notes.append(f"{key}: fold {fold} lists {len(unused)} labelled cases on no side ({some_of(unused)})")
        validated = Counter(name for _, names in self.folds for name in names)
        if several := sorted(name for name in validation if validated[name] > 1):
            notes.append(
                f"{key}: {len(several)} cases are validated by several folds ({some_of(several)}), so a mean over the"
                " folds counts them more than once"
            )
        return [known[name] for name in sorted(train)], [known[name] for name in sorted(validation)], tuple(notes)


def find_listed_folds(dataset: Dataset, settings: DataConfig, *, stated: bool) -> tuple[ListedFolds | None, list[str]]:
    """Read the file of folds that a configuration uses, if there is one.

    Args:
        dataset: to split.
        settings: the section `data`.
        stated: whether the data set itself states folds.

    Returns:
        The folds, and notes for the log on a file that is used, or is not used, without being named.

    Raises:
        UserError: the file is missing or damaged.
    """
    if settings.splits == NONE:
        return None, []
    if settings.splits != AUTO:
        return read_listed_folds(read_named_file("data.splits", settings.splits, dataset.root)), []
    if not (dataset.root / SPLITS_FILE).is_file():
        return None, []
    reasons = {
        f"{dataset.source.name} states folds": stated,
        "data.folds is set": settings.folds != DataConfig.model_fields["folds"].default,
        "data.fold_seed is set": settings.fold_seed != DataConfig.model_fields["fold_seed"].default,
        "data.group is set": settings.group is not None,
        "data.stratify is set": settings.stratify is not None,
        f"data.fold is {settings.fold}": isinstance(settings.fold, str),
    }
    place = dataset.root / SPLITS_FILE
    if why := [reason for reason, applies in reasons.items() if applies]:
        return None, [f"{place}: is not used, because {' and '.join(why)}"]
    listed = read_listed_folds(read_named_file("data.splits", SPLITS_FILE, dataset.root))
    return listed, [f"{place}: states the folds (data.splits=none draws them instead)"]


def read_listed_folds(file: NamedFile) -> ListedFolds:
    """Read a file of folds.

    Args:
        file: the file.

    Raises:
        UserError: with all problems of the file.
    """
    expected = 'a list of {"train": [names], "val": [names]}'
    try:
        content: Any = json.loads(file.text)
    except ValueError as error:
        raise UserError(f"{file.key}: is not JSON ({error}); expected {expected}") from None
    if not isinstance(content, list) or not content:
        raise UserError(f"{file.key}: expected {expected}, got {type(content).__name__} {str(content)[:40]}")
    problems: list[str] = []
    folds = []
    for number, entry in enumerate(content):
        if not _is_fold(entry):
            problems.append(f"{file.key}: fold {number}: expected {expected[10:]}, got {str(entry)[:60]}; correct it")
            continue
        train, validation = entry["train"], entry["val"]
        problems += _fold_problems(f"{file.key}: fold {number}", train, validation)
        folds.append((tuple(train), tuple(validation)))
    if problems:
        raise UserError(problems)
    return ListedFolds(file, tuple(folds))


def _fold_problems(where: str, train: list[str], validation: list[str]) -> list[str]:
    problems = []
    for side, names in zip(_SIDES, (train, validation), strict=True):
        if not names:
            problems.append(f"{where}: {side} is empty; list a case on each side")
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            problems.append(f"{where}: {side} lists {some_of(twice)} several times; list each case once")
    if both := [name for name in train if name in set(validation)]:
        problems.append(f"{where}: {some_of(both)} are in train and in val; keep each case on one side")
    return problems


def _is_fold(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != set(_SIDES):
        return False
    return all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in value.values())
