"""The split of a checkpoint that does not record it: dealt anew, and believed if the hash of its cases agrees."""

from __future__ import annotations

import hashlib

from fusionseg.config import RunConfig
from fusionseg.data.formats.dataset import Case, Dataset
from fusionseg.data.formats.split import folds_are_stated, split_dataset
from fusionseg.data.preprocessing.case_digests import digests_of
from fusionseg.data.preprocessing.prepare import open_configured
from fusionseg.data.preprocessing.store import SourceFile
from fusionseg.inference.trained_network import Trained
from fusionseg.runs.split import Ancestor, Split, SplitCase
from fusionseg.utils.errors import UserError


def verified_split(member: Trained, config: RunConfig) -> Split | None:
    """The split of a run of an earlier version; None if the data set is not the one that it was trained on.

    Args:
        config: of the evaluation, which says where the data set is now; the member's own place is tried too.
    """
    own = member.config
    for data in (config.data, own.data):
        moved = own.model_copy(
            update={
                "data": own.data.model_copy(update={"root": data.root, "layout": data.layout, "labels": data.labels})
            }
        )
        try:
            dataset = open_configured(moved)
            train, validation = split_dataset(dataset, moved.data, pretraining=False)
        except UserError:
            continue
        if own.data.skip_broken:  # what could not be read then cannot be read now
            readable = digests_of([*train, *validation], dataset.readers)
            train, validation = ([case for case in part if case.name in readable] for part in (train, validation))
        if _content([*train, *validation]) == member.content:
            return _split(member, dataset, train, validation)
    return None


def _content(cases: list[Case]) -> str:
    """The hash that checkpoints had: of the names and the files of the cases."""
    parts = []
    for case in cases:
        files = [*case.images, *([case.label] if case.label is not None else [])]
        of_files = "".join(SourceFile.read(path).sha256 for path in files)
        parts.append(case.name + hashlib.sha256(of_files.encode()).hexdigest()[:16])
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def _split(member: Trained, dataset: Dataset, train: list[Case], validation: list[Case]) -> Split | None:
    content = digests_of([*train, *validation], dataset.readers)
    if len(content) < len({case.name for case in (*train, *validation)}):
        return None
    recorded = [
        tuple(SplitCase(case.name, dataset.name, content[case.name].image, content[case.name].label) for case in part)
        for part in (train, validation)
    ]
    settings, start = member.config.data, member.config.init_from
    return Split(
        settings.fold,
        settings.folds,
        settings.fold_seed,
        folds_are_stated(train),
        (dataset.name,),
        member.channels,
        member.labels,
        recorded[0],
        recorded[1],
        () if start is None else (Ancestor(start, None),),
    )
