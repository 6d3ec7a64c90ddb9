"""The data sets of a run and their cases: one with labels for a segmentation, any number for a pre-training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from fusionseg.config import DataConfig, RunConfig
from fusionseg.config.data.labels import LABEL_KEYS
from fusionseg.config.data.splits import ALL, CLASSES, NONE
from fusionseg.data.formats.channel_names import channel_order, label_order
from fusionseg.data.formats.dataset import Case, Dataset
from fusionseg.data.labels.differences import scheme_differences
from fusionseg.data.preprocessing.prepare import label_values_file, open_configured, open_store
from fusionseg.data.preprocessing.store import Store
from fusionseg.data.splits.method import SplitMethod
from fusionseg.data.splits.split import DatasetSplit, split_dataset
from fusionseg.runs.cases.split import Split, SplitCase
from fusionseg.utils.errors import UserError, some_of


@dataclass(frozen=True)
class ConfiguredDataset:
    """A data set that a run names, opened."""

    data: DataConfig
    """The section `data` as it is for this data set."""
    output: str
    """The setting `output`, below which the prepared cases lie."""
    listed: Dataset
    """The data set as its JSON lists it."""
    dataset: Dataset
    """The same, with every case that the run may train or validate on in `training`."""
    needs_labels: bool
    """Whether the run trains on labelled cases only."""
    needs_target: bool
    """Whether the run learns the value of each case that `data.target` names."""

    @property
    def names_classes(self) -> bool:
        """True if the run learns classes, so that their names and their order must not change."""
        return self.needs_labels or self.needs_target

    @cached_property
    def store(self) -> Store:
        """The prepared cases. The files are checked for changes when this property is first read."""
        return open_store(self.data, self.output, self.dataset)


@dataclass(frozen=True)
class RunDataset(ConfiguredDataset):
    """A data set of a run, split into training and validation."""

    training: list[Case]
    validation: list[Case]
    method: SplitMethod
    """The way in which the cases were split."""
    notes: tuple[str, ...] = ()
    """Facts about the split, for the log."""

    @property
    def trains_on_validation(self) -> bool:
        """True if the configuration asks to train on the validation cases (`data.folds: 1`)."""
        return self.data.folds == 1 and self.method.name == "drawn"

    @property
    def cases(self) -> list[Case]:
        """The cases of the run, each once: training, then validation."""
        trained_on = {case.name for case in self.training}
        return self.training + [case for case in self.validation if case.name not in trained_on]

    @property
    def unused(self) -> list[Case]:
        """Labelled training cases of the data set that the run does not use."""
        used = {case.name for case in self.cases}
        return [case for case in self.dataset.training if case.label is not None and case.name not in used]

    @property
    def is_prepared(self) -> bool:
        """True if all cases of the run are in the store."""
        return all(case.name in self.store.cases for case in self.cases)


def open_datasets(config: RunConfig) -> list[ConfiguredDataset]:
    """Open the data sets of a run.

    Args:
        config: the run's configuration.

    Raises:
        UserError: with the problems of all data sets.
    """
    needs_labels = config.task_info.needs_labels
    if needs_labels:
        listed = open_configured(config.data)
        return [ConfiguredDataset(config.data, config.output, listed, listed, needs_labels=True, needs_target=False)]
    if config.task_info.needs_target:
        # Its cases have a target and no label file, so a test case would look like an image without annotation.
        listed = replace(open_configured(config.data), testing=())
        return [ConfiguredDataset(config.data, config.output, listed, listed, needs_labels=False, needs_target=True)]
    opened: list[ConfiguredDataset] = []
    problems: list[str] = []
    for data in _data_sections(config.data):
        try:
            listed = open_configured(data)
        except UserError as error:
            problems += error.problems
        else:
            opened.append(
                ConfiguredDataset(
                    data, config.output, listed, _with_unlabelled_tests(listed), False, needs_target=False
                )
            )
    problems += _channel_problems([one.dataset for one in opened])
    if problems:
        raise UserError(problems)
    return opened


def open_run_datasets(config: RunConfig, recorded: Split | None = None) -> list[RunDataset]:
    """Open the data sets of a run and split them into training and validation.

    Args:
        config: the run's configuration.
        recorded: the split that the run started with; None draws the split of a new run.

    Raises:
        UserError: with the problems of all data sets, or of the folds; or recorded cases are missing.
    """
    opened = open_datasets(config)
    if recorded is not None:
        return _recorded_datasets(opened, recorded)
    split = [_with_cases(one, split_cases(one)) for one in opened]
    if config.data.fold != ALL and not any(one.validation for one in split):
        raise UserError(f"data.fold={config.data.fold}: none of the {len(split)} data sets has such a group")
    return split


def split_cases(opened: ConfiguredDataset) -> DatasetSplit:
    """The training and the validation cases of a data set, as the configuration asks for."""
    return split_dataset(
        opened.listed,
        opened.data,
        needs_labels=opened.needs_labels,
        kept_labels=label_values_file(opened.output, opened.listed),
        may_lack_group=bool(opened.data.also),
    )


def open_begun_datasets(config: RunConfig, recorded: Split | None) -> list[RunDataset]:
    """Open the data sets of a run that has begun; see `open_run_datasets`.

    Args:
        config: the run's configuration.
        recorded: the split that the run started with; None for a run of a version that did not record it. Such versions
            read no file of folds.
    """
    if recorded is not None:
        return open_run_datasets(config, recorded)
    also = tuple(further.model_copy(update={"splits": NONE}) for further in config.data.also)
    data = config.data.model_copy(update={"splits": NONE, "also": also})
    return open_run_datasets(config.model_copy(update={"data": data}))


def name_differences(opened: ConfiguredDataset, recorded: Split) -> list[str]:
    """Compare channels and labels with those that the run started with.

    Args:
        opened: the data set as it is now.
        recorded: the split that the run started with.

    Returns:
        A message for each kind of names that differs.
    """
    dataset = opened.dataset
    channels = channel_order(recorded.channels, dataset.channels)
    kinds = [("channel", channels, dict(enumerate(recorded.channels)), dict(enumerate(dataset.channels)))]
    if opened.names_classes:
        kinds.append(("class", label_order(recorded.labels, dataset.labels), recorded.labels, dataset.labels))
    problems = []
    for kind, order, before, now in kinds:
        if order == tuple(range(len(before))):  # the same but for upper and lower case
            continue
        changes = [
            f"{kind} {value} was {before.get(value, 'not there')}, is {now.get(value, 'not there')} now"
            for value in sorted({*before, *now})
            if before.get(value) != now.get(value)
        ]
        problems.append(
            f"{dataset.root}: the {kind} names differ from those that the run started with ({', '.join(changes)}):"
            " restore them, or give the run another name"
        )
    if opened.names_classes and not problems and (changes := scheme_differences(recorded.scheme, dataset.scheme)):
        problems.append(
            f"{dataset.root}: the meaning of the labels differs from that which the run started with"
            f" ({'; '.join(changes)}): restore it, or give the run another name"
        )
    return problems


def _data_sections(data: DataConfig) -> list[DataConfig]:
    """The section `data` as it is for each data set: the first one, then those of `data.also`."""
    sections = [data]
    for further in data.also:
        values = {key: getattr(further, key) for key in type(further).model_fields}
        for key in ("reader", "series", "transforms"):  # null means that of `data`
            values[key] = getattr(data, key) if values[key] is None else values[key]
        # Each data set has labels of its own; a list that names the values 0, 1, ... may name those of all of them.
        values |= {key: DataConfig.model_fields[key].default for key in LABEL_KEYS}
        values["labels"] = data.labels if isinstance(data.labels, tuple) else None
        # Columns belong to the table or the JSON of one data set.
        values |= {"weight": None, "target": None, "stratify": data.stratify if data.stratify == CLASSES else None}
        sections.append(data.model_copy(update=values))
    return sections


def _with_unlabelled_tests(dataset: Dataset) -> Dataset:
    """The data set with the test images that have no label among its training cases.

    Pre-training can use them as any other image. Labelled test cases are kept for tests.
    """
    return replace(dataset, training=dataset.training + tuple(case for case in dataset.testing if case.label is None))


def _channel_problems(datasets: Sequence[Dataset]) -> list[str]:
    """A message for each further data set with another number of channels, or with another order of the same ones.

    Other names of as many channels are accepted.
    """
    problems = []
    for other in datasets[1:]:
        first = datasets[0]
        names = (
            f"data.also: {other.root} has the channels {', '.join(other.channels)}, and {first.root} has"
            f" {', '.join(first.channels)}"
        )
        if len(other.channels) != len(first.channels):
            problems.append(f"{names}: pre-train on them apart, because a network reads a fixed number of channels")
        elif channel_order(first.channels, other.channels) not in (None, tuple(range(len(first.channels)))):
            problems.append(f"{names}: bring them into one order, because the network identifies channels by position")
    return problems


def _with_cases(opened: ConfiguredDataset, split: DatasetSplit) -> RunDataset:
    return RunDataset(
        opened.data,
        opened.output,
        opened.listed,
        opened.dataset,
        opened.needs_labels,
        opened.needs_target,
        split.training,
        split.validation,
        split.method,
        split.notes,
    )


def _recorded_datasets(opened: Sequence[ConfiguredDataset], recorded: Split) -> list[RunDataset]:
    """Find the cases of a recorded split by their names.

    Raises:
        UserError: with all cases that are missing; or the names of classes or channels have changed.
    """
    problems = name_differences(opened[0], recorded)
    found = []
    for one, name, method in zip(opened, recorded.datasets, recorded.method_of_each, strict=True):
        usable = {case.name: case for case in one.dataset.training if case.label is not None or not one.needs_labels}
        training, missing_training = _find_cases(recorded.training, name, usable)
        validation, missing_validation = _find_cases(recorded.validation, name, usable)
        missing = sorted({*missing_training, *missing_validation})
        if missing:
            problems.append(
                f"{one.dataset.root}: the run started with cases that are missing now, or have no label now"
                f" ({some_of(missing)}): restore them, or give the run another name to train on the cases that are"
                " there"
            )
        found.append(_with_cases(one, DatasetSplit(training, validation, method)))
    if problems:
        raise UserError(problems)
    return found


def _find_cases(
    recorded: Sequence[SplitCase], dataset: str, usable: Mapping[str, Case]
) -> tuple[list[Case], list[str]]:
    """The recorded cases of a data set with their recorded groups and weights, and the names of those that are missing.

    Args:
        dataset: the name of the data set in the split.
        usable: the cases of the data set by name.
    """
    own = [case for case in recorded if case.dataset == dataset]
    found = [
        replace(usable[case.name], group=case.group, weight=case.weight, target=case.target)
        for case in own
        if case.name in usable
    ]
    return found, [case.name for case in own if case.name not in usable]
