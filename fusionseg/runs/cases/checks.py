"""Checks of a split by the content of its images.

No image is both trained on and validated on, and the cases of a run do not change between its starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionseg.data.formats.image_digest import ImageSet
from fusionseg.runs.cases.split import Ancestor, Split, SplitCase
from fusionseg.runs.paths import SPLIT
from fusionseg.utils.errors import UserError, some_of


def refuse_seen(init_from: str | None, ancestors: Iterable[Ancestor], validation: Sequence[tuple[str, str]]) -> None:
    """Refuse validation cases that the first weights were trained on.

    Args:
        init_from: the setting, for the message.
        ancestors: the checkpoints that the first weights come from.
        validation: the name and the digest of the image of each validation case.

    Raises:
        UserError: some of the images were trained on.
    """
    for ancestor in ancestors:
        images = ImageSet.of(ancestor.images or ())
        if seen := sorted(name for name, digest in validation if digest in images):
            raise UserError(
                f"init_from={init_from}: {ancestor.path} was trained on {len(seen)} of the {len(validation)} validation"
                f" cases of this run ({some_of(seen)}), so their scores would not be those of new cases: start from a"
                " run that held them out (the same data.fold, data.folds and data.fold_seed), or set"
                " init_from_seen=mark to train anyway and mark every result"
            )


def refuse_common_images(training: Sequence[SplitCase], validation: Sequence[SplitCase]) -> None:
    """Refuse an image that is both trained on and validated on.

    Raises:
        UserError: with the pairs of cases.
    """
    common = ImageSet.of(case.image for case in validation)
    suspects = [(case, ImageSet.of([case.image])) for case in training if case.image in common]
    pairs = [(case, other) for other in validation for case, image in suspects if other.image in image]
    if pairs:
        listed = some_of([f"{_full_name(one)} and {_full_name(other)}" for one, other in pairs])
        raise UserError(
            f"data: {len(pairs)} pairs of a training and a validation case hold the same image ({listed}), which would"
            " be validated on after it was trained on: take one of each pair out of the data set, or put both into"
            " one fold (a datalist states folds); to train and validate on the same cases on purpose, list each image"
            " once, state no folds, and set data.folds=1"
        )


def refuse_changed_cases(recorded: Split, now: Sequence[SplitCase], *, needs_labels: bool) -> None:
    """Refuse cases whose content is not that of the start of the run, and cases that cannot be prepared.

    Args:
        recorded: the split that the run started with.
        now: the prepared cases.
        needs_labels: labels are compared too.

    Raises:
        UserError: with all such cases.
    """
    current = {(case.dataset, case.name): case for case in now}
    problems = list(_changes(recorded, current, needs_labels=needs_labels))
    if problems:
        raise UserError(
            f"data: not all cases are those that the run started with ({some_of(problems)}): restore them, or give the"
            " run another name to train on the data as they are"
        )


def check_checkpoint(folder: Path, state: Mapping[str, Any], split: Split, content: str) -> None:
    """Refuse to resume from a checkpoint of another split.

    Args:
        folder: the run folder, for the message.
        state: the content of the checkpoint.
        split: the split of this start.
        content: the hash of the data that checkpoints of earlier versions hold instead of a split.

    Raises:
        UserError: the checkpoint belongs to other data.
    """
    if "split" in state:
        same = Split.from_json(state["split"], str(folder)) == split
        remedy = f"delete {SPLIT}, which is not that of the checkpoints"
    else:
        names = (tuple(state["channels"]), {int(value): name for value, name in state["labels"].items()})
        same = state.get("data") == content and names == (split.channels, split.labels)
        remedy = "restore the cases, their content and the names of classes and channels"
    if not same:
        raise UserError(
            f"{folder}: its checkpoints come from other data: {remedy}, or give the run another name to start again"
        )


def _changes(recorded: Split, current: dict[tuple[str, str], SplitCase], *, needs_labels: bool) -> Iterator[str]:
    for case in dict.fromkeys((*recorded.training, *recorded.validation)):
        now = current.get((case.dataset, case.name))
        if now is None:
            yield f"{case.name}: cannot be prepared"
        elif now.image != case.image:
            yield f"{case.name}: the image has changed"
        elif needs_labels and now.label != case.label:
            yield f"{case.name}: the label has changed"
        elif needs_labels and now.annotated != case.annotated:
            yield f"{case.name}: it annotates {_annotated(now)} now, and {_annotated(case)} when the run started"


def _annotated(case: SplitCase) -> str:
    return "all classes" if case.annotated is None else ", ".join(case.annotated)


def _full_name(case: SplitCase) -> str:
    return f"{case.dataset}/{case.name}"
