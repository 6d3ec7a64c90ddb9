"""The cases of a run: dealt when it begins, recorded with it, and the same at every later start."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionseg.config import RunConfig
from fusionseg.data.formats.image_digest import ImageSet
from fusionseg.data.preprocessing.case_digests import digests_of
from fusionseg.data.preprocessing.prepare import open_store
from fusionseg.data.preprocessing.store import Store
from fusionseg.models.weights.loading import read_file
from fusionseg.runs.checkpoints import find_weights, newest_intact, read_training_state
from fusionseg.runs.datasets import Source, open_sources
from fusionseg.runs.folder import RunFolder
from fusionseg.runs.split import Ancestor, Split, SplitCase, dataset_names, read_split
from fusionseg.utils.errors import UserError, some_of

log = logging.getLogger("fusionseg")


@dataclass(frozen=True)
class RunCases:
    """The data sets of a run and what is known of its split before anything is prepared."""

    sources: list[Source]
    recorded: Split | None
    """The split that the run began with; None for one that begins now."""
    ancestors: tuple[Ancestor, ...]
    """The checkpoints that the first weights come from."""


def open_run(config: RunConfig, folder: RunFolder, *, planned: bool = False) -> RunCases:
    """Open the data sets of a run that starts, or goes on, in `folder`.

    Args:
        planned: the run starts later; what `init_from` names need not be there yet.

    Raises:
        UserError: the cases cannot be split; those that the run began with are not there; or the weights of
            `init_from` were trained on validation cases.
    """
    recorded = recorded_split(folder)
    sources = open_sources(config, recorded)
    ancestors = recorded.seen if recorded is not None else _ancestors(config, folder, planned)
    if config.init_from_seen == "refuse" and recorded is None and any(ancestor.images for ancestor in ancestors):
        refuse_seen(config, ancestors, _validation_digests(sources))
    return RunCases(sources, recorded, ancestors)


def recorded_split(folder: RunFolder) -> Split | None:
    """The split of a run that has begun; None for a new one, and for one of a version that did not record it.

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


def settle_split(config: RunConfig, run: RunCases, stores: Sequence[Store]) -> Split:
    """The split of a run by the contents of its prepared cases.

    Raises:
        UserError: an image is on both sides; recorded cases have changed; or `init_from` has seen validation cases.
    """
    first = stores[0]
    names = run.recorded.datasets if run.recorded else dataset_names(store.name for store in stores)
    training, validation = (
        tuple(
            SplitCase(case.name, name, store.cases[case.name].digest, store.cases[case.name].label_digest or None)
            for source, store, name in zip(run.sources, stores, names, strict=True)
            for case in (source.train if part == "training" else source.validation)
            if case.name in store.cases
        )
        for part in ("training", "validation")
    )
    if run.recorded is not None:
        _check_recorded(config, run.recorded, (*training, *validation))
        return run.recorded
    for purpose, cases in (("train", training), ("validate", validation)):
        if not cases:
            raise UserError(f"data.fold {config.data.fold}: no case is left to {purpose} on")
    fitted = {name for source, name in zip(run.sources, names, strict=True) if source.trains_on_validation}
    _refuse_common_images(training, [case for case in validation if case.dataset not in fitted])
    refuse_seen(config, run.ancestors, [(case.name, case.image) for case in validation])
    return Split(
        config.data.fold,
        config.data.folds,
        config.data.fold_seed,
        run.sources[0].stated,
        names,
        first.channels,
        first.labels,
        training,
        validation,
        run.ancestors,
    )


def check_checkpoint(folder: Path, state: Mapping[str, Any], split: Split, content: str) -> None:
    """Refuse to resume from a checkpoint of another split.

    Args:
        state: the checkpoint's.
        content: the hash that a checkpoint of an earlier version has instead of a split.

    Raises:
        UserError: the checkpoint belongs to other data.
    """
    if "split" in state:
        same = Split.from_json(state["split"], str(folder)) == split
        advice = "delete split.json, which is not that of the checkpoints"
    else:
        names = (tuple(state["channels"]), {int(value): name for value, name in state["labels"].items()})
        same = state.get("data") == content and names == (split.channels, split.labels)
        advice = "restore the cases, their content and the names of classes and channels"
    if not same:
        raise UserError(
            f"{folder}: its checkpoints come from other data: {advice}, or give the run another name to begin anew"
        )


def read_ancestors(path: Path) -> tuple[Ancestor, ...]:
    """A checkpoint that a run starts from, after those that it started from itself.

    Raises:
        UserError: it cannot be read.
    """
    content = read_file(path)
    if not isinstance(content, Mapping) or "split" not in content:
        return (Ancestor(str(path), None),)
    split = Split.from_json(content["split"], str(path))
    return *split.seen, Ancestor(str(path), tuple(sorted({case.image for case in split.training})))


def refuse_seen(config: RunConfig, ancestors: Iterable[Ancestor], validation: Sequence[tuple[str, str]]) -> None:
    """Refuse validation cases that the first weights were trained on, unless the results are to be marked.

    Args:
        validation: name of the case, digest of its image.

    Raises:
        UserError: there are some, and `init_from_seen` is refuse.
    """
    if config.init_from_seen == "mark":
        return
    for ancestor in ancestors:
        images = ImageSet.of(ancestor.images or ())
        if seen := sorted(name for name, digest in validation if digest in images):
            raise UserError(
                f"init_from={config.init_from}: {ancestor.path} was trained on {len(seen)} of the {len(validation)}"
                f" validation cases of this run ({some_of(seen)}), so their figures would not be those of new cases;"
                " start from a run that held them out (the same data.fold, data.folds and data.fold_seed), or set"
                " init_from_seen=mark to go on and mark every result"
            )


def announce(run: RunCases, split: Split) -> None:
    """Log what a reader of the results has to know of the split."""
    for source in run.sources:
        tests = sum(case.label is not None for case in source.dataset.testing)
        if source.config.pretrain is not None and tests:
            log.info("%s: %d labelled test cases are never trained on", source.dataset.name, tests)
        if run.recorded is not None and (unused := source.unused):
            log.info(
                "%s: has %d labelled cases that this run does not use, for it goes on with the split that it began"
                " with (%s)",
                source.dataset.name,
                len(unused),
                some_of([case.name for case in unused]),
            )
    for path in split.unknown:
        log.warning(
            "init_from: %s does not say what it was trained on; whether that includes validation cases is unknown", path
        )
    if split.fitted:
        log.warning(
            "data.folds=1: training and validation are on the same cases; the results are marked, for they say nothing"
            " about new cases"
        )
    elif split.trained_on:
        log.warning(
            "init_from: its weights were trained on %d of %d validation cases (%s); the results are marked, for they"
            " do not hold for new cases",
            len(split.trained_on),
            len(split.validation),
            some_of(split.trained_on),
        )


def _ancestors(config: RunConfig, folder: RunFolder, planned: bool) -> tuple[Ancestor, ...]:
    if config.init_from is None:
        return ()
    unknown = (Ancestor(config.init_from, None),)
    try:
        path = find_weights(Path(config.init_from))
    except UserError:
        if planned or folder.has_checkpoints():  # of an earlier version: its weights are not needed any more
            return unknown
        raise
    try:
        return read_ancestors(path)
    except UserError:
        if folder.has_checkpoints():
            return unknown
        raise


def _validation_digests(sources: Sequence[Source]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for source in sources:
        store, _ = open_store(source.config, source.dataset)
        found += [
            (name, content.image)
            for name, content in digests_of(source.validation, source.dataset.readers, store.cases).items()
        ]
    return found


def _refuse_common_images(training: Sequence[SplitCase], validation: Sequence[SplitCase]) -> None:
    """Refuse an image that is trained on and validated on.

    Raises:
        UserError: with the pairs.
    """
    common = ImageSet.of(case.image for case in validation)
    suspects = [(case, ImageSet.of([case.image])) for case in training if case.image in common]
    pairs = [(case, other) for other in validation for case, image in suspects if other.image in image]
    if pairs:
        listed = some_of([f"{_label(one)} and {_label(other)}" for one, other in pairs])
        raise UserError(
            f"data: {len(pairs)} pairs of a training and a validation case hold the same image ({listed}), which would"
            " be validated on after it was trained on: take one of each pair out of the data set, or put both into"
            " one fold (a datalist states folds); to train and validate on the same cases on purpose, list each image"
            " once, state no folds, and set data.folds=1"
        )


def _check_recorded(config: RunConfig, recorded: Split, now: Sequence[SplitCase]) -> None:
    """Refuse cases that have another content than when the run began, or cannot be prepared.

    Raises:
        UserError: with all of them.
    """
    labels_count = config.pretrain is None
    current = {(case.dataset, case.name): case for case in now}
    problems = list(_changes(recorded, current, labels_count))
    if problems:
        raise UserError(
            f"data: not all cases are those that the run began with ({some_of(problems)}): restore them, or give the"
            " run another name to train on the data as they are"
        )


def _changes(recorded: Split, current: dict[tuple[str, str], SplitCase], labels_count: bool) -> Iterator[str]:
    for case in dict.fromkeys((*recorded.training, *recorded.validation)):
        now = current.get((case.dataset, case.name))
        if now is None:
            yield f"{case.name}: cannot be prepared"
        elif now.image != case.image:
            yield f"{case.name}: the image has changed"
        elif labels_count and now.label != case.label:
            yield f"{case.name}: the label has changed"


def _label(case: SplitCase) -> str:
    return f"{case.dataset}/{case.name}"
