"""The cases that an evaluation scores, and which of them the networks were trained on, by the content of the images."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusionseg.config import DataConfig, RunConfig
from fusionseg.data.formats.dataset import Case, Dataset
from fusionseg.data.preprocessing.case_digests import CaseDigests, digests_of
from fusionseg.data.preprocessing.prepare import open_configured, open_store
from fusionseg.data.preprocessing.store import PreparedCase
from fusionseg.inference.evaluation.unrecorded_split import verified_split
from fusionseg.inference.trained_network import TrainedNetwork
from fusionseg.observability.progress import counting_progress
from fusionseg.runs.cases.split import Split, SplitCase
from fusionseg.runs.run_config import load_run_config, relevant_changes
from fusionseg.utils.errors import UserError, some_of

log = logging.getLogger("fusionseg")

NO, YES, UNKNOWN = "no", "yes", "unknown"

# Keys that matter for a resume, but that an evaluation may change, because they only describe the files.
_DATA_KEYS = ("layout", "labels", "classes", "regions", "regions_class_order", "ignore", "annotated")


@dataclass(frozen=True)
class CasesToScore:
    """The cases of an evaluation."""

    dataset: Dataset
    cases: list[Case]
    trained_on: dict[str, str]
    """Whether the networks were trained on a case, by its name: yes, no or unknown."""
    left_out: list[str] = field(default_factory=list)
    """Names of cases that are scored, but not counted by the means, because they were trained on."""
    images: Mapping[str, str] = field(default_factory=dict)
    """Digests of the images by name of the case; without those that cannot be read."""

    def marks(self, counted: Collection[str]) -> dict[str, Any]:
        """The entries of the summary about cases that were trained on.

        Args:
            counted: names of the cases that the means count.
        """
        known = [self.trained_on[name] for name in counted]
        return {
            "trained_on": known.count(YES),
            "trained_on_unknown": known.count(UNKNOWN),
            "left_out": self.left_out,
        }


def evaluation_config(run: Path, overrides: Sequence[str]) -> RunConfig:
    """Load a run's configuration, with overrides for paths that have changed since the training.

    Args:
        run: the run folder.
        overrides: `key.path=value` settings, such as data.root.

    Raises:
        UserError: the path is no run folder, or an override would make it another run.
    """
    config = load_run_config(run, overrides)
    changed = []
    if overrides:
        changed = relevant_changes(load_run_config(run).to_dict(), config.to_dict())
    wrong = [change for change in changed if not _describes_files(change.split(":")[0])]
    if wrong:
        raise UserError(
            [
                f"{change}: would make it another run than {run} (expected data.root, data.base_dir,"
                f" data.prepared, {', '.join(f'data.{key}' for key in _DATA_KEYS)}); remove it, or name other cases by"
                " --dataset"
                for change in wrong
            ]
        )
    return config


def _describes_files(key: str) -> bool:
    """Tell whether a key describes the files of the data set; it may lie in a mapping, as data.labels.liver does."""
    section, *inner = key.split(".")
    return section == "data" and inner[:1] != [] and inner[0] in _DATA_KEYS


def validation_cases(
    data: DataConfig, output: str, members: Sequence[TrainedNetwork], *, include_trained: bool
) -> CasesToScore:
    """The validation cases of a run, as the run recorded them.

    Args:
        data: the section `data` of the run, with the paths that are valid now.
        output: the setting `output`, below which prepared cases lie.
        members: the networks whose predictions are averaged; the first one is the run's.
        include_trained: the means count cases that were trained on, and the results are marked.

    Raises:
        UserError: cases are missing or have changed; another member was trained on one of them; or all cases were
            trained on.
    """
    splits = [_split_of(member, data, may_be_unknown=False) for member in members]
    known = [split for split in splits if split is not None]
    _warn_of_unknown_ancestors(known)
    own = known[0]
    dataset = open_configured(data)
    cases, content = _find_recorded(dataset, own.validation, _prepared_cases(data, output, dataset))
    if not include_trained:
        _refuse_trained_members(members[1:], known[1:], cases, content)
    # The run was told to train on these and to mark the results (data.folds=1, init_from_seen=mark).
    marked = {name for name, digests in content.items() if digests.image not in own.own_images}
    return _leave_out_trained(dataset, cases, content, known, marked, include_trained=include_trained)


def all_labelled_cases(
    dataset: Dataset, data: DataConfig, output: str, members: Sequence[TrainedNetwork], *, include_trained: bool
) -> CasesToScore:
    """All labelled cases of a data set, test cases included.

    Args:
        dataset: the data set.
        data: the section `data` of the run, with the root of this data set.
        output: the setting `output`, below which prepared cases lie.
        members: the networks whose predictions are averaged.
        include_trained: the means count cases that were trained on, and the results are marked.

    Raises:
        UserError: no case has a label; all cases were trained on; or it is unknown what a member was trained on, and
            `include_trained` is False.
    """
    splits = [_split_of(member, data, may_be_unknown=include_trained) for member in members]
    known = [split for split in splits if split is not None]
    _warn_of_unknown_ancestors(known)
    cases = [case for case in (*dataset.training, *dataset.testing) if case.label is not None]
    if not cases:
        raise UserError(f"{dataset.root}: has no labelled cases to evaluate on")
    content = _digests(dataset, cases, _prepared_cases(data, output, dataset))
    if len(known) < len(splits):
        trained = _trained_on(content, known)
        marks = {case.name: YES if case.name in trained else UNKNOWN for case in cases}
        return CasesToScore(dataset, cases, marks, images=_images(content))
    return _leave_out_trained(dataset, cases, content, known, set(), include_trained=include_trained)


def _leave_out_trained(
    dataset: Dataset,
    cases: list[Case],
    content: Mapping[str, CaseDigests],
    splits: Sequence[Split],
    marked: Collection[str],
    *,
    include_trained: bool,
) -> CasesToScore:
    """Leave the cases that were trained on out of the means, unless the run itself marks them.

    Args:
        content: digests of the cases by name.
        splits: what the networks were trained on.
        marked: names of cases on which the run was told to train although it validates on them.
        include_trained: leave out no case.

    Raises:
        UserError: all cases were trained on.
    """
    trained = _trained_on(content, splits)
    left_out = [] if include_trained else sorted(trained.difference(marked))
    if len(left_out) == len(cases):
        raise UserError(
            f"{dataset.root}: all {len(cases)} cases were trained on ({some_of(left_out)}): choose others by --dataset,"
            " or add --include-trained to score them and mark the results"
        )
    if left_out:
        log.warning(
            "%s: %d of %d cases were trained on (%s): they are scored, and the means leave them out;"
            " --include-trained counts them and marks the results",
            dataset.root,
            len(left_out),
            len(cases),
            some_of(left_out),
        )
    marks = {case.name: YES if case.name in trained else NO for case in cases}
    return CasesToScore(dataset, cases, marks, left_out, _images(content))


def _images(content: Mapping[str, CaseDigests]) -> dict[str, str]:
    return {name: digests.image for name, digests in content.items()}


def _trained_on(content: Mapping[str, CaseDigests], splits: Sequence[Split]) -> set[str]:
    return {name for name, digests in content.items() if any(split.was_trained_on(digests.image) for split in splits)}


def _warn_of_unknown_ancestors(splits: Sequence[Split]) -> None:
    for path in dict.fromkeys(path for split in splits for path in split.unknown):
        log.warning("%s does not say what it was trained on: whether these cases are among it is unknown", path)


def _split_of(member: TrainedNetwork, data: DataConfig, *, may_be_unknown: bool) -> Split | None:
    """The split that a network was trained on; None if it is unknown."""
    if member.split is not None:
        return member.split
    split = verified_split(member, data)
    if split is None and not may_be_unknown:
        raise UserError(
            f"{member.path}: comes from a version that did not record what it was trained on, and the cases of"
            f" {data.root} are not those of its training any more: give data.root=FOLDER, where they are unchanged; or"
            " score another data set by --dataset FOLDER --include-trained, which marks the results as unknown"
        )
    return split


def _find_recorded(
    dataset: Dataset, recorded: Sequence[SplitCase], prepared: Mapping[str, PreparedCase]
) -> tuple[list[Case], dict[str, CaseDigests]]:
    """Find recorded cases in a data set, by name or else by content.

    Returns:
        The cases, and the digests of those that can be read.

    Raises:
        UserError: with all cases that are missing or have changed.
    """
    labelled = {case.name: case for case in (*dataset.training, *dataset.testing) if case.label is not None}
    content = _digests(dataset, [labelled[case.name] for case in recorded if case.name in labelled], prepared)
    # A case that cannot be read is kept: scoring it reports the problem.
    strays = [
        case
        for case in recorded
        if case.name not in labelled or (case.name in content and content[case.name].image != case.image)
    ]
    names = {case.name: case.name for case in recorded}
    if strays:
        everything = _digests(dataset, list(labelled.values()), prepared)
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


def _refuse_trained_members(
    members: Sequence[TrainedNetwork],
    splits: Sequence[Split],
    cases: Sequence[Case],
    content: Mapping[str, CaseDigests],
) -> None:
    """Refuse networks that were trained on one of the cases.

    Raises:
        UserError: with all such networks.
    """
    problems = []
    for member, split in zip(members, splits, strict=True):
        seen = [case.name for case in cases if case.name in content and split.was_trained_on(content[case.name].image)]
        if seen:
            problems.append(
                f"{member.path}: was trained on {len(seen)} of the {len(cases)} cases to be evaluated"
                f" ({some_of(seen)}): average runs that held the same cases out, choose another data set (--dataset),"
                " or add --include-trained to mark the results"
            )
    if problems:
        raise UserError(problems)


def _prepared_cases(data: DataConfig, output: str, dataset: Dataset) -> dict[str, PreparedCase]:
    """Records of the prepared cases, which spare reading the files; empty if there is no store."""
    try:
        return open_store(data, output, dataset).cases
    except (UserError, OSError):
        return {}


def _digests(dataset: Dataset, cases: Sequence[Case], prepared: Mapping[str, PreparedCase]) -> dict[str, CaseDigests]:
    with counting_progress("reading") as progress:
        return digests_of(cases, dataset, prepared, progress)
