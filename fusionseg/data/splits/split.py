"""The split of a data set into training and validation cases, the same for all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from fusionseg.config.data.dataset import DataConfig
from fusionseg.config.data.splits import ALL, CLASSES, is_pattern
from fusionseg.data.formats.case import Case
from fusionseg.data.formats.dataset import Dataset
from fusionseg.data.splits.columns import Columns, describe_cases
from fusionseg.data.splits.folds import draw_folds
from fusionseg.data.splits.label_classes import occurring_classes
from fusionseg.data.splits.method import SplitFile, SplitMethod
from fusionseg.data.splits.splits_file import ListedFolds, find_listed_folds
from fusionseg.utils.errors import UserError, some_of, suggest


@dataclass(frozen=True)
class DatasetSplit:
    """The split of a data set.

    Args:
        training: cases to train on.
        validation: cases to validate on; none with `data.fold: all`.
        method: the way in which the cases were split.
        notes: for the log.
    """

    training: list[Case]
    validation: list[Case]
    method: SplitMethod
    notes: tuple[str, ...] = ()


def split_dataset(
    dataset: Dataset,
    settings: DataConfig,
    *,
    needs_labels: bool,
    kept_labels: Path | None = None,
    may_lack_group: bool = False,
) -> DatasetSplit:
    """List the training and validation cases of the configured fold.

    Only the labelled training cases are divided into folds, so that the validation cases are the same for a
    segmentation and for a pre-training. A task that needs no labels also trains on the training cases without a label
    and on the test cases without a label, unless they are in a group that is validated on. Labelled test cases are
    never trained on. If no training case has a label, such a task divides all training cases.

    Args:
        dataset: to split.
        settings: the section `data`.
        needs_labels: whether the task uses labelled cases only, see `TaskInfo`.
        kept_labels: see `occurring_classes`.
        may_lack_group: a data set without the group that `data.fold` names is trained on as a whole, because another
            data set of the run has it.

    Raises:
        UserError: there are no cases to split, or not so many folds; a file or a column is wrong; or a group is on both
            sides.
    """
    labelled = [case for case in dataset.training if case.label is not None]
    if not labelled and needs_labels:
        raise UserError(f"{dataset.root}: has no labelled training cases: segmentation needs a label for each image")
    unlabelled_tests = [case for case in dataset.testing if case.label is None]
    usable = labelled if needs_labels else [*dataset.training, *unlabelled_tests]
    if not usable:
        raise UserError(
            f"{dataset.root}: all its cases are labelled test cases, which are never trained on: list images for"
            " training"
        )
    described, columns = describe_cases(dataset, settings, usable)
    known = {case.name: case for case in described}
    divided = [known[case.name] for case in labelled or list(dataset.training) or unlabelled_tests]
    divided_names = {case.name for case in divided}
    others = [case for case in described if case.name not in divided_names]
    splitting = _Splitting(dataset, settings, columns, kept_labels, may_lack_group)
    split = splitting.split(divided, [] if needs_labels else others)
    return replace(split, training=split.training[: settings.train_cases])


def folds_are_stated(cases: Sequence[Case]) -> bool:
    """Test that the data set states the fold of each case. Then `data.folds` and `data.fold_seed` have no effect.

    Args:
        cases: of the data set.
    """
    return bool(cases) and all(case.fold is not None for case in cases)


def split_folds(
    cases: Sequence[Case], folds: int, fold: int, seed: int, where: str = "the data set", group: str | None = None
) -> tuple[list[Case], list[Case]]:
    """List the training and validation cases of one fold, each sorted by name.

    Folds that the data set states are used as they are. Otherwise every case validates in exactly one fold, see
    `draw_folds`. With one fold, all cases are trained on and validated on.

    Args:
        cases: to split.
        folds: number of folds; it has no effect on stated folds.
        fold: index of the fold whose cases validate.
        seed: of the folds; it has no effect on stated folds.
        where: the data set, for messages.
        group: `data.group`, for messages.

    Raises:
        UserError: there is no such fold, or there are not enough cases or groups.
    """
    ordered = sorted(cases, key=lambda case: case.name)
    if folds_are_stated(ordered):
        assigned = {case.name: cast(int, case.fold) for case in ordered}
        _check_stated(sorted(set(assigned.values())), fold, where)
    else:
        _check_drawn(len(ordered), folds, fold, where)
        if folds == 1:
            return ordered, list(ordered)
        assigned = draw_folds(ordered, folds, seed, group)
    train = [case for case in ordered if assigned[case.name] != fold]
    return train, [case for case in ordered if assigned[case.name] == fold]


@dataclass(frozen=True)
class _Splitting:
    """A data set and the settings that split it."""

    dataset: Dataset
    settings: DataConfig
    columns: Columns
    kept_labels: Path | None
    may_lack_group: bool

    def split(self, divided: list[Case], others: list[Case]) -> DatasetSplit:
        """Split the cases.

        Args:
            divided: cases that are trained or validated on.
            others: cases that are only trained on.
        """
        fold, stated = self.settings.fold, folds_are_stated(divided)
        listed, notes = find_listed_folds(self.dataset, self.settings, stated=stated)
        if fold == ALL:
            return DatasetSplit(_by_name(divided) + others, [], self._method("all"), tuple(notes))
        if isinstance(fold, str):
            training, validation = self._hold_out(fold, divided)
            if stated:
                notes.append(f"{self.dataset.source}: its folds are not used, because data.fold names a group")
            method = self._method("held_out")
        elif listed is not None:
            training, validation, more = listed.split(fold, divided, self.dataset)
            notes += more
            method = self._method("file", listed)
        elif stated:
            self._refuse_stratification()
            training, validation = self._stated(fold, divided, others)
            method = self._method("stated")
        else:
            training, validation = self._draw(fold, divided)
            method = self._method("drawn")
        if self.settings.folds > 1 or method.states_folds:
            self._check_groups(training, validation)
        used = {case.name for case in (*training, *validation)}
        # A validation list may have cases without a label, and these are not trained on.
        held_out = fold if method.name == "stated" else None
        groups = {case.group for case in validation} - {None}
        training += [
            case
            for case in others
            if case.name not in used and (held_out is None or case.fold != held_out) and case.group not in groups
        ]
        return DatasetSplit(training, validation, method, tuple(notes))

    def _stated(self, fold: int, divided: list[Case], others: list[Case]) -> tuple[list[Case], list[Case]]:
        if others and len({case.fold == fold for case in divided}) == 1:
            # All labelled cases are on one side, so no segmentation has this split; the others fill the other side.
            inside = {case.name for case in divided if case.fold == fold}
            stated = [case for case in (*divided, *others) if case.fold is not None]
            divided = [case for case in stated if case.fold != fold or not inside or case.name in inside]
        return split_folds(divided, self.settings.folds, fold, self.settings.fold_seed, str(self.dataset.root))

    def _draw(self, fold: int, divided: list[Case]) -> tuple[list[Case], list[Case]]:
        settings = self.settings
        if settings.folds == 1:  # training and validation are the same
            divided = _by_name(divided)[: settings.train_cases]
        elif settings.stratify == CLASSES:
            classes = occurring_classes(self.dataset, divided, self.kept_labels)
            divided = [replace(case, stratum=classes[case.name]) for case in divided]
        if settings.group is not None:
            self._refuse_single_group(divided)
        return split_folds(
            divided, settings.folds, fold, settings.fold_seed, str(self.dataset.root), group=settings.group
        )

    def _hold_out(self, fold: str, divided: list[Case]) -> tuple[list[Case], list[Case]]:
        """Validate on one group, and train on the others."""
        groups = sorted({case.group for case in divided if case.group is not None})
        if fold not in groups and self.may_lack_group:
            return _by_name(divided), []
        if fold not in groups:
            raise UserError(
                f"data.fold={fold}: data.group={self.settings.group} has no such group; {suggest(fold, groups)}"
            )
        self._refuse_single_group(divided)
        ordered = _by_name(divided)
        return [case for case in ordered if case.group != fold], [case for case in ordered if case.group == fold]

    def _refuse_single_group(self, divided: Sequence[Case]) -> None:
        groups = {case.group for case in divided}
        if len(groups) == 1 and self.settings.folds > 1:
            raise UserError(
                f"data.group={self.settings.group}: all {len(divided)} cases are in one group ({divided[0].group}), so"
                " none is left for the other side; name another column or pattern"
            )

    def _refuse_stratification(self) -> None:
        if self.settings.stratify is not None:
            raise UserError(
                f"data.stratify={self.settings.stratify}: has no effect, because {self.dataset.source.name} states the"
                " folds; remove it, or take the folds out of the list"
            )

    def _check_groups(self, training: Sequence[Case], validation: Sequence[Case]) -> None:
        """Refuse folds that were listed elsewhere and that divide a group.

        Raises:
            UserError: with all groups that are on both sides.
        """
        held_out = {case.group: case.name for case in validation if case.group is not None}
        shared = {case.group: case.name for case in training if case.group in held_out}
        if shared:
            named = [f"{group}: {name} and {held_out[group]}" for group, name in sorted(shared.items(), key=str)]
            count = "1 group is" if len(shared) == 1 else f"{len(shared)} groups are"
            raise UserError(
                f"data.group={self.settings.group}: {count} in training and in validation of fold"
                f" {self.settings.fold} ({some_of(named, 5)}); correct the folds that are listed, or draw them"
                " (data.splits=none, no folds in a datalist)"
            )

    def _method(self, name: str, listed: ListedFolds | None = None) -> SplitMethod:
        settings = self.settings
        group = None if name == "all" else settings.group
        stratify = settings.stratify if name == "drawn" else None
        # The table is recorded where the split depends on it.
        read = [column for column in (group, stratify) if column is not None and column != CLASSES]
        table = self.columns.table
        in_table = table is not None and any(not is_pattern(column) and column in table.columns for column in read)
        return SplitMethod(
            name,  # type: ignore[arg-type]  # the callers give one of its literals
            group,
            stratify,
            SplitFile.of(None if listed is None else listed.file),
            SplitFile.of(table.file if in_table and table is not None else None),
        )


def _by_name(cases: Sequence[Case]) -> list[Case]:
    return sorted(cases, key=lambda case: case.name)


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
