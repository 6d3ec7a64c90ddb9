"""The cases that an evaluation scores: those that a run held out, or those of another data set; told by content."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusionseg.config import RunConfig, differences
from fusionseg.data.formats.dataset import Case, Dataset, open_dataset
from fusionseg.data.formats.readers import Readers
from fusionseg.data.preprocessing.case_digests import CaseDigests, digests_of
from fusionseg.data.preprocessing.prepare import open_configured, open_store
from fusionseg.data.preprocessing.store import PreparedCase
from fusionseg.inference.evaluation.old_runs import verified_split
from fusionseg.inference.trained_network import Trained
from fusionseg.observability.progress import counting_progress
from fusionseg.runs.run_config import load_run_config, resume_relevant
from fusionseg.runs.split import Split, SplitCase
from fusionseg.utils.errors import UserError, some_of

log = logging.getLogger("fusionseg")

NO, YES, UNKNOWN = "no", "yes", "unknown"

# What may be said anew at an evaluation beside what a run may change between its starts.
_DATA_KEYS = ("data.layout", "data.labels")


@dataclass(frozen=True)
class CasesToScore:
    """The cases, and which of them the networks were trained on."""

    dataset: Dataset
    cases: list[Case]
    trained_on: dict[str, str]
    """By name of the case: yes, no or unknown."""
    apart: list[str] = field(default_factory=list)
    """Names of cases that were trained on: they are scored, and no mean counts them."""

    def marks(self, counted: Collection[str]) -> dict[str, Any]:
        """Entries of a summary of scores: how many cases were trained on, of how many it is unknown, and the names of
        those that the means leave out."""
        known = [self.trained_on[name] for name in counted]
        return {
            "trained_on": known.count(YES),
            "trained_on_unknown": known.count(UNKNOWN),
            "left_out": self.apart,
        }


def evaluation_config(run: Path, overrides: Sequence[str]) -> RunConfig:
    """A run's configuration with the places that hold now.

    Raises:
        UserError: an override would make it another run.
    """
    config = load_run_config(run, overrides)
    changed = differences(resume_relevant(load_run_config(run).to_dict()), resume_relevant(config.to_dict()))
    wrong = [change for change in changed if change.split(":")[0] not in _DATA_KEYS]
    if wrong:
        raise UserError(
            [
                f"{change}: would make it another run than {run}: an evaluation takes data.root, data.layout,"
                " data.labels and data.prepared; remove it, or name other cases by --dataset"
                for change in wrong
            ]
        )
    return config


def choose_cases(
    config: RunConfig, members: Sequence[Trained], dataset_root: str | None, *, include_trained: bool = False
) -> CasesToScore:
    """The cases to score, and those among them that were trained on.

    Args:
        config: of the run, the first member, with the places that hold now.
        dataset_root: a data set, all labelled cases of which are meant, test cases too; None means the run's
            validation cases.
        include_trained: the means count cases that were trained on too, and are marked.

    Raises:
        UserError: the run's validation cases are gone or have changed; a member was trained on them; or all cases were
            trained on.
    """
    may_be_unknown = include_trained and dataset_root is not None
    splits = [_split_of(member, config, may_be_unknown) for member in members]
    for split in filter(None, splits):
        for path in split.unknown:
            log.warning("%s does not say what it was trained on: whether the cases are among it is unknown", path)
    if dataset_root is None:
        own = splits[0]
        assert own is not None  # else refused above
        dataset = open_configured(config)
        cases, content = _validation_cases(config, dataset, own.validation)
        if not include_trained:
            _refuse_members(members[1:], splits[1:], cases, content)
        # What the run itself was told to go on with and mark (`init_from_seen`).
        marked = {name for name, digests in content.items() if digests.image not in own.own_images}
    else:
        # The run's names for labels are not this data set's, unless it has none.
        dataset = open_dataset(
            dataset_root, "auto", default_labels=config.data.labels, readers=Readers(config.data.reader)
        )
        cases = [case for case in (*dataset.training, *dataset.testing) if case.label is not None]
        if not cases:
            raise UserError(f"{dataset.root}: has no labelled cases to evaluate on")
        content = _read(dataset, cases, _prepared(_with_root(config, dataset_root), dataset))
        marked = set()
    known = [split for split in splits if split is not None]
    trained = {name for name, digests in content.items() if any(split.was_trained_on(digests.image) for split in known)}
    if None in splits:
        return CasesToScore(dataset, cases, {case.name: YES if case.name in trained else UNKNOWN for case in cases})
    apart = [] if include_trained else sorted(trained - marked)
    if len(apart) == len(cases):
        raise UserError(
            f"{dataset.root}: all {len(cases)} cases were trained on ({some_of(apart)}): choose others by --dataset,"
            " or add --include-trained to score them and mark the results"
        )
    if apart:
        log.warning(
            "%s: %d of %d cases were trained on (%s): they are scored, and the means leave them out;"
            " --include-trained counts them and marks the results",
            dataset.root,
            len(apart),
            len(cases),
            some_of(apart),
        )
    return CasesToScore(dataset, cases, {case.name: YES if case.name in trained else NO for case in cases}, apart)


def _split_of(member: Trained, config: RunConfig, may_be_unknown: bool) -> Split | None:
    if member.split is not None:
        return member.split
    split = verified_split(member, config)
    if split is None and not may_be_unknown:
        raise UserError(
            f"{member.path}: comes from a version that did not record what it was trained on, and the cases of"
            f" {config.data.root} are not those of its training any more: give data.root=FOLDER, where they are"
            " unchanged; or score another data set by --dataset FOLDER --include-trained, which marks the results as"
            " unknown"
        )
    return split


def _validation_cases(
    config: RunConfig, dataset: Dataset, recorded: Sequence[SplitCase]
) -> tuple[list[Case], dict[str, CaseDigests]]:
    """The recorded cases as they are called now, by name or else by content.

    Raises:
        UserError: with all that are gone or have changed.
    """
    labelled = {case.name: case for case in (*dataset.training, *dataset.testing) if case.label is not None}
    prepared = _prepared(config, dataset)
    content = _read(dataset, [labelled[case.name] for case in recorded if case.name in labelled], prepared)
    # A case that cannot be read is kept: scoring it says what is wrong with it.
    strays = [
        case
        for case in recorded
        if case.name not in labelled or (case.name in content and content[case.name].image != case.image)
    ]
    names = {case.name: case.name for case in recorded}
    if strays:
        everything = _read(dataset, list(labelled.values()), prepared)
        by_image = {digests.image: name for name, digests in everything.items()}
        for case in strays:
            names[case.name] = by_image.get(case.image, "")
        content = {name: everything[name] for name in names.values() if name in everything}
    problems = []
    for case in recorded:
        now = content.get(names[case.name])
        if not names[case.name]:
            what = "the image has changed" if case.name in labelled else "is gone, and no case has its image"
            problems.append(f"{case.name}: {what}")
        elif now is not None and now.label is not None and now.label != case.label:
            problems.append(f"{case.name}: the label has changed")
        elif names[case.name] != case.name:
            log.info("%s: the validation case %s is called %s now", dataset.root, case.name, names[case.name])
    if problems:
        raise UserError(
            f"{dataset.root}: the run's validation cases are not as they were ({some_of(problems)}): restore them, give"
            " data.root=FOLDER, where they are unchanged, or name the cases to score by --dataset"
        )
    return list(dict.fromkeys(labelled[names[case.name]] for case in recorded)), content


def _refuse_members(
    members: Sequence[Trained], splits: Sequence[Split | None], cases: Sequence[Case], content: dict[str, CaseDigests]
) -> None:
    """Refuse members that were trained on one of the cases.

    Raises:
        UserError: with each of them.
    """
    problems = []
    for member, split in zip(members, splits, strict=True):
        assert split is not None  # else refused before
        if seen := [
            case.name for case in cases if case.name in content and split.was_trained_on(content[case.name].image)
        ]:
            problems.append(
                f"{member.path}: was trained on {len(seen)} of the {len(cases)} cases to be evaluated"
                f" ({some_of(seen)}): average runs that held the same cases out, choose another data set (--dataset),"
                " or add --include-trained to mark the results"
            )
    if problems:
        raise UserError(problems)


def _prepared(config: RunConfig, dataset: Dataset) -> dict[str, PreparedCase]:
    """Current records of the prepared cases, which spare reading the files; none where there is no such folder."""
    try:
        return open_store(config, dataset)[0].cases
    except (UserError, OSError):
        return {}


def _with_root(config: RunConfig, root: str) -> RunConfig:
    return config.model_copy(update={"data": config.data.model_copy(update={"root": root})})


def _read(dataset: Dataset, cases: Sequence[Case], prepared: dict[str, PreparedCase]) -> dict[str, CaseDigests]:
    with counting_progress("reading") as progress:
        return digests_of(cases, dataset.readers, prepared, progress)
