"""The data sets of a run and their cases: one with labels for a segmentation, any number for a pre-training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fusionseg.config import RunConfig
from fusionseg.data.formats.channel_names import channel_order, label_order
from fusionseg.data.formats.dataset import Case, Dataset
from fusionseg.data.formats.split import folds_are_stated, split_dataset
from fusionseg.data.preprocessing.prepare import open_configured
from fusionseg.runs.split import Split, SplitCase
from fusionseg.utils.errors import UserError, some_of


@dataclass(frozen=True)
class Source:
    """One data set of a run."""

    config: RunConfig
    """The run's configuration, with `data` as it is for this data set."""
    dataset: Dataset
    """With the cases that the run may use as `training`."""
    train: list[Case]
    validation: list[Case]
    stated: bool
    """Whether the data set states its folds."""

    @property
    def trains_on_validation(self) -> bool:
        """Whether the configuration asks for it (`data.folds: 1`)."""
        return self.config.data.folds == 1 and not self.stated

    @property
    def cases(self) -> list[Case]:
        """Those of the run, each once: training, then validation."""
        return self.train + [case for case in self.validation if case not in self.train]

    @property
    def unused(self) -> list[Case]:
        """Labelled training cases that the run does not use."""
        used = {case.name for case in self.cases}
        return [case for case in self.dataset.training if case.label is not None and case.name not in used]


def open_datasets(config: RunConfig) -> list[tuple[RunConfig, Dataset]]:
    """The data sets of a run, each with the run's configuration as it is for it, and with what it may use as training.

    Raises:
        UserError: with all problems of all data sets.
    """
    return [(part, _usable(part, dataset)) for part, dataset in _open(config)]


def open_sources(config: RunConfig, recorded: Split | None = None) -> list[Source]:
    """The data sets of a run, split into training and validation.

    Args:
        recorded: the split that the run began with; None deals the cases.

    Raises:
        UserError: with the problems of all data sets, or of the folds; or recorded cases are missing.
    """
    opened = _open(config)
    if recorded is not None:
        return _recorded_sources(opened, recorded)
    return [
        Source(part, _usable(part, dataset), *split_cases(part, dataset), folds_are_stated(dataset.training))
        for part, dataset in opened
    ]


def split_cases(config: RunConfig, dataset: Dataset) -> tuple[list[Case], list[Case]]:
    """Training and validation cases of a data set, as the configuration deals them."""
    return split_dataset(dataset, config.data, pretraining=config.pretrain is not None)


def _open(config: RunConfig) -> list[tuple[RunConfig, Dataset]]:
    if config.pretrain is None:
        return [(config, open_configured(config))]
    opened: list[tuple[RunConfig, Dataset]] = []
    problems: list[str] = []
    for number in range(1 + len(config.data.also)):
        part = _of_source(config, number)
        try:
            opened.append((part, open_configured(part)))
        except UserError as error:
            problems += error.problems
    for _, other in opened[1:]:
        first = opened[0][1]
        if len(other.channels) != len(first.channels):
            problems.append(
                f"data.also: {other.root} has the channels {', '.join(other.channels)}, and {first.root} has"
                f" {', '.join(first.channels)}: pre-train on them apart, for one network reads one number of channels"
            )
        elif channel_order(first.channels, other.channels) not in (None, tuple(range(len(first.channels)))):
            problems.append(
                f"data.also: {other.root} has the channels {', '.join(other.channels)}, and {first.root} has"
                f" {', '.join(first.channels)}: bring them into one order, for the network knows them by their place"
            )
    if problems:
        raise UserError(problems)
    return opened


def _of_source(config: RunConfig, number: int) -> RunConfig:
    """The configuration as it is for `data` (number 0) or one of the further data sets."""
    if number == 0:
        return config
    source = config.data.also[number - 1]
    values = {key: getattr(source, key) for key in type(source).model_fields}
    for key in ("reader", "transforms"):  # null is that of `data`
        values[key] = getattr(config.data, key) if values[key] is None else values[key]
    data = config.data.model_copy(update=values)
    return config.model_copy(update={"data": data})


def _usable(config: RunConfig, dataset: Dataset) -> Dataset:
    """The data set with all cases that a run of this kind may use as its training cases."""
    if config.pretrain is None:
        return dataset
    # Test images without a label are as good to pre-train on as any; those with one are for tests.
    return replace(dataset, training=dataset.training + tuple(case for case in dataset.testing if case.label is None))


def _recorded_sources(opened: list[tuple[RunConfig, Dataset]], recorded: Split) -> list[Source]:
    """The cases of a run's own split, by their names.

    Raises:
        UserError: with all that are missing; or classes or channels have other names now.
    """
    problems = name_differences(opened[0][0], opened[0][1], recorded)
    sources = []
    for (part, dataset), name in zip(opened, recorded.datasets, strict=True):
        usable = _usable(part, dataset)
        by_name = {case.name: case for case in usable.training if case.label is not None or part.pretrain is not None}
        train, lost = _named(recorded.training, name, by_name)
        validation, also_lost = _named(recorded.validation, name, by_name)
        missing = {*lost, *also_lost}
        if missing:
            problems.append(
                f"{dataset.root}: the run began with cases that are not there any more, or have no label now"
                f" ({some_of(sorted(missing))}): restore them, or give the run another name to train on what is"
                " there"
            )
        sources.append(Source(part, usable, train, validation, recorded.stated))
    if problems:
        raise UserError(problems)
    return sources


def _named(entries: Sequence[SplitCase], dataset: str, by_name: Mapping[str, Case]) -> tuple[list[Case], list[str]]:
    """The cases of a data set among recorded ones, and the names of those that are missing."""
    names = [entry.name for entry in entries if entry.dataset == dataset]
    return [by_name[name] for name in names if name in by_name], [name for name in names if name not in by_name]


def name_differences(config: RunConfig, dataset: Dataset, recorded: Split) -> list[str]:
    """Compare the names of classes and channels with those that the run began with; the problems."""
    channels = channel_order(recorded.channels, dataset.channels)
    kinds = [("channel", channels, dict(enumerate(recorded.channels)), dict(enumerate(dataset.channels)))]
    if config.pretrain is None:
        kinds.append(("class", label_order(recorded.labels, dataset.labels), recorded.labels, dataset.labels))
    problems = []
    for kind, order, before, now in kinds:
        if order == tuple(range(len(before))):  # but for upper and lower case
            continue
        changes = [
            f"{kind} {value} was {before.get(value, 'not there')}, is {now.get(value, 'not there')} now"
            for value in sorted({*before, *now})
            if before.get(value) != now.get(value)
        ]
        problems.append(
            f"{dataset.root}: the {kind} names differ from those that the run began with ({', '.join(changes)}):"
            " restore them, or give the run another name"
        )
    return problems
