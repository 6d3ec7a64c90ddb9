"""The data sets of a run and their cases: one with labels for a segmentation, any number for a pre-training."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fusionseg.config import RunConfig
from fusionseg.data.dataset import Case, Dataset, split_folds
from fusionseg.data.prepare import open_configured
from fusionseg.errors import UserError


@dataclass(frozen=True)
class Source:
    """One data set of a run."""

    config: RunConfig
    """The run's configuration, with `data` as it is for this data set."""
    dataset: Dataset
    """With the cases that the run may use as `training`."""
    train: list[Case]
    validation: list[Case]

    @property
    def cases(self) -> list[Case]:
        """Those of the run: training, then validation."""
        return self.train + self.validation


def open_datasets(config: RunConfig) -> list[tuple[RunConfig, Dataset]]:
    """The data sets of a run, each with the run's configuration as it is for it.

    Raises:
        UserError: with all problems of all data sets.
    """
    if config.pretrain is None:
        return [(config, open_configured(config))]
    opened: list[tuple[RunConfig, Dataset]] = []
    problems: list[str] = []
    for number in range(1 + len(config.data.also)):
        part = _of_source(config, number)
        try:
            dataset = open_configured(part)
        except UserError as error:
            problems += error.problems
            continue
        # Test images are as good to pre-train on as any.
        opened.append((part, replace(dataset, training=dataset.training + dataset.testing)))
    for _, other in opened[1:]:
        first = opened[0][1]
        if len(other.channels) != len(first.channels):
            problems.append(
                f"data.also: {other.root} has the channels {', '.join(other.channels)}, and {first.root} has"
                f" {', '.join(first.channels)}: pre-train on them apart, for one network reads one number of channels"
            )
    if problems:
        raise UserError(problems)
    return opened


def open_sources(config: RunConfig) -> list[Source]:
    """The data sets of a run, split into training and validation.

    Raises:
        UserError: with the problems of all data sets, or of the folds.
    """
    split = split_cases if config.pretrain is None else _split_unlabelled
    return [Source(part, dataset, *split(part, dataset)) for part, dataset in open_datasets(config)]


def split_cases(config: RunConfig, dataset: Dataset) -> tuple[list[Case], list[Case]]:
    """The labelled cases of the configured fold: training, validation."""
    labelled = [case for case in dataset.training if case.label is not None]
    if not labelled:
        raise UserError(f"{dataset.root}: has no labelled training cases: segmentation needs a label for each image")
    train, validation = split_folds(labelled, config.data.folds, config.data.fold, config.data.fold_seed)
    return train[: config.data.train_cases], validation


def _of_source(config: RunConfig, number: int) -> RunConfig:
    """The configuration as it is for `data` (number 0) or one of the further data sets."""
    if number == 0:
        return config
    source = config.data.also[number - 1]
    data = config.data.model_copy(update={key: getattr(source, key) for key in type(source).model_fields})
    return config.model_copy(update={"data": data})


def _split_unlabelled(config: RunConfig, dataset: Dataset) -> tuple[list[Case], list[Case]]:
    """The cases of a pre-training: all images, labelled or not.

    The labelled cases on which a segmentation of the same fold validates are held out here too: a network that is
    fine-tuned afterwards is validated on images that it has never seen.
    """
    dealt = [case for case in dataset.training if case.label is not None] or list(dataset.training)
    train, validation = split_folds(dealt, config.data.folds, config.data.fold, config.data.fold_seed)
    known = {case.name for case in dealt}
    train += [case for case in dataset.training if case.name not in known]
    return train[: config.data.train_cases], validation
