"""The cases of a run at a start: opened before the preparation, and settled by their content after it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionseg.config import RunConfig
from fusionseg.config.data.splits import ALL
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.data.preprocessing.case_digests import digests_of
from fusionseg.data.preprocessing.store import Store
from fusionseg.runs.cases.checks import refuse_changed_cases, refuse_common_images, refuse_seen
from fusionseg.runs.cases.datasets import RunDataset, open_begun_datasets, open_run_datasets
from fusionseg.runs.cases.split import Ancestor, Split, SplitCase, dataset_names, read_split
from fusionseg.runs.cases.split_file import NO_VALIDATION
from fusionseg.runs.checkpoints import find_weights, newest_intact, read_start, read_training_state
from fusionseg.runs.folder import RunFolder
from fusionseg.utils.errors import UserError, some_of

log = logging.getLogger("fusionseg")


@dataclass(frozen=True)
class RunCases:
    """The cases of a run, before anything is prepared."""

    datasets: list[RunDataset]
    recorded: Split | None
    """The split that the run started with; None for a new run."""
    ancestors: tuple[Ancestor, ...]
    """The checkpoints that the first weights come from."""


def open_cases(config: RunConfig, folder: RunFolder, *, planned: bool = False) -> RunCases:
    """Open the cases of a run that starts, or is resumed.

    Args:
        config: the run's configuration.
        folder: the run folder; it need not exist.
        planned: the run starts later. The weights of `init_from` need not exist yet.

    Raises:
        UserError: the cases cannot be split; cases that the run started with are missing; or the weights of `init_from`
            were trained on validation cases, and `init_from_seen` is refuse.
    """
    recorded = recorded_split(folder)
    datasets = open_begun_datasets(config, recorded) if folder.has_checkpoints() else open_run_datasets(config)
    ancestors = recorded.seen if recorded is not None else _ancestors(config.start_weights, folder, planned=planned)
    if config.init_from_seen == "refuse" and recorded is None and any(ancestor.images for ancestor in ancestors):
        refuse_seen(config.start_weights, ancestors, _validation_digests(datasets))
    return RunCases(datasets, recorded, ancestors)


def recorded_split(folder: RunFolder) -> Split | None:
    """The split that a run started with; None for a new run, and for a run of a version that did not record it.

    Args:
        folder: the run folder; it need not exist.

    Raises:
        UserError: the record is damaged.
    """
    if not folder.has_checkpoints():
        return None
    if folder.paths.split.is_file():
        return read_split(folder.path)
    newest = newest_intact(folder.paths.checkpoints, read_training_state)
    if newest is None or "split" not in newest[1]:
        return None
    return Split.from_json(newest[1]["split"], str(newest[0]))


def settle_split(config: RunConfig, cases: RunCases, stores: Sequence[Store]) -> Split:
    """Identify the cases of a run by the content of their images, and check that the split is sound.

    Args:
        config: the run's configuration.
        cases: the cases of the run.
        stores: the prepared cases of each data set.

    Raises:
        UserError: an image is on both sides; recorded cases have changed; no case is left on one side; or the weights
            of `init_from` were trained on validation cases.
    """
    names = cases.recorded.datasets if cases.recorded else dataset_names(store.name for store in stores)
    training, validation = (
        tuple(
            SplitCase(
                case.name,
                name,
                store.cases[case.name].digest,
                store.cases[case.name].label_digest or None,
                case.group,
                case.weight,
                annotated=case.annotated,
                target=case.target,
            )
            for one, store, name in zip(cases.datasets, stores, names, strict=True)
            for case in (one.training if side == "training" else one.validation)
            if case.name in store.cases
        )
        for side in ("training", "validation")
    )
    first = cases.datasets[0]
    if cases.recorded is not None:
        refuse_changed_cases(cases.recorded, (*training, *validation), needs_labels=first.needs_labels)
        return cases.recorded
    for purpose, found in (("train", training), ("validate", validation)):
        if not found and not (purpose == "validate" and first.data.fold == ALL):
            raise UserError(f"data.fold {first.data.fold}: no case is left to {purpose} on")
    fitted = {name for one, name in zip(cases.datasets, names, strict=True) if one.trains_on_validation}
    refuse_common_images(training, [case for case in validation if case.dataset not in fitted])
    if config.init_from_seen == "refuse":
        refuse_seen(config.start_weights, cases.ancestors, [(case.name, case.image) for case in validation])
    methods = tuple(one.method for one in cases.datasets)
    return Split(
        fold=first.data.fold,
        folds=first.data.folds,
        fold_seed=first.data.fold_seed,
        stated=first.method.states_folds,
        datasets=names,
        channels=stores[0].channels,
        labels=stores[0].labels,
        training=training,
        validation=validation,
        seen=cases.ancestors,
        methods=() if all(method.is_plain for method in methods) else methods,
        label_scheme=_recorded_scheme(stores[0].scheme) if first.names_classes else None,
    )


def _recorded_scheme(scheme: LabelScheme) -> dict[str, Any] | None:
    return None if scheme.is_plain else scheme.to_json()


def log_split(cases: RunCases, split: Split) -> None:
    """Log the facts about a split that a reader of the results needs.

    Args:
        cases: the cases of the run.
        split: its split.
    """
    for one in cases.datasets:
        for note in one.notes:
            log.info("%s", note)
        if not one.method.is_plain and not split.validates_none:
            log.info(
                "split: %s: %d cases to train on, %d to validate on",
                one.method.describe(split.fold),
                len(one.training),
                len(one.validation),
            )
        tests = sum(case.label is not None for case in one.dataset.testing)
        if not one.needs_labels and tests:
            log.info("%s: %d labelled test cases are never trained on", one.dataset.name, tests)
        if cases.recorded is not None and (unused := one.unused):
            log.info(
                "%s: has %d labelled cases that this run does not use, because it keeps the split that it started with"
                " (%s)",
                one.dataset.name,
                len(unused),
                some_of([case.name for case in unused]),
            )
    for path in split.unknown:
        log.warning(
            "init_from: %s does not say what it was trained on; whether that includes validation cases is unknown", path
        )
    if split.validates_none:
        log.info("data.fold=all: %s, so there is no best.pt, and last.pt is the result of the run", NO_VALIDATION)
    if split.fitted:
        log.warning(
            "data.folds=1: training and validation are on the same cases; the results are marked, because they say"
            " nothing about new cases"
        )
    elif split.trained_on:
        log.warning(
            "init_from: its weights were trained on %d of %d validation cases (%s); the results are marked, because"
            " they do not hold for new cases",
            len(split.trained_on),
            len(split.validation),
            some_of(split.trained_on),
        )


def _ancestors(init_from: str | None, folder: RunFolder, *, planned: bool) -> tuple[Ancestor, ...]:
    """The checkpoint that `init_from` names, and the checkpoints that it started from itself."""
    if init_from is None:
        return ()
    # A run with checkpoints and without a recorded split began with an earlier version. It does not need its first
    # weights any more.
    unknown = (Ancestor(init_from, None),)
    try:
        path = find_weights(Path(init_from))
    except UserError:
        if planned or folder.has_checkpoints():
            return unknown
        raise
    try:
        return _read_ancestors(path)
    except UserError:
        if folder.has_checkpoints():
            return unknown
        raise


def _read_ancestors(path: Path) -> tuple[Ancestor, ...]:
    """A checkpoint as an ancestor, after those that it started from itself.

    Raises:
        UserError: the file cannot be read.
    """
    content = read_start(path)
    if not isinstance(content, Mapping) or "split" not in content:
        return (Ancestor(str(path), None),)
    split = Split.from_json(content["split"], str(path))
    return *split.seen, Ancestor(str(path), tuple(sorted({case.image for case in split.training})))


def _validation_digests(datasets: Sequence[RunDataset]) -> list[tuple[str, str]]:
    """The name and the digest of the image of each validation case that can be read."""
    found: list[tuple[str, str]] = []
    for one in datasets:
        digests = digests_of(one.validation, one.dataset, one.store.cases)
        found += [(name, digest.image) for name, digest in digests.items()]
    return found
