"""The split of a checkpoint of an earlier version, which recorded a hash of the cases and no split.

The split is drawn again, and is accepted if its hash is the recorded one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from fusionseg.config import DataConfig
from fusionseg.config.data.splits import NONE
from fusionseg.data.formats.dataset import Case, Dataset
from fusionseg.data.preprocessing.case_digests import digests_of
from fusionseg.data.preprocessing.prepare import open_configured
from fusionseg.data.preprocessing.record import SourceFile
from fusionseg.data.splits.split import folds_are_stated, split_dataset
from fusionseg.inference.trained_network import TrainedNetwork
from fusionseg.runs.cases.split import Ancestor, Split, SplitCase
from fusionseg.utils.errors import UserError


def verified_split(member: TrainedNetwork, data: DataConfig) -> Split | None:
    """Draw the split of a network of an earlier version again, and verify it by the hash that its checkpoint records.

    Args:
        member: the network.
        data: the section `data` of the evaluation, whose root may be the data set of the training. The root in the
            network's own configuration is tried too.

    Returns:
        The split; None if neither data set is the one of the training.
    """
    own = member.config.data
    for section in (data, own):
        place = {"root": section.root, "layout": section.layout, "labels": section.labels}
        moved = own.model_copy(update={**place, "splits": NONE})  # such versions read no file of folds
        try:
            dataset = open_configured(moved)
            split = split_dataset(dataset, moved, needs_labels=True)
        except UserError:
            continue
        training, validation = split.training, split.validation
        if own.skip_broken:  # a case that could not be read at the training cannot be read now
            readable = digests_of([*training, *validation], dataset)
            training = [case for case in training if case.name in readable]
            validation = [case for case in validation if case.name in readable]
        if _hash_of([*training, *validation]) == member.data_hash:
            return _split(member, dataset, training, validation)
    return None


def _hash_of(cases: Sequence[Case]) -> str:
    """The hash of the names and the files of cases, as earlier versions recorded it."""
    parts = []
    for case in cases:
        files = [*case.images, *([case.label] if case.label is not None else [])]
        of_files = "".join(SourceFile.read(path).sha256 for path in files)
        parts.append(case.name + hashlib.sha256(of_files.encode()).hexdigest()[:16])
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def _split(
    member: TrainedNetwork, dataset: Dataset, training: Sequence[Case], validation: Sequence[Case]
) -> Split | None:
    content = digests_of([*training, *validation], dataset)
    if len(content) < len({case.name for case in (*training, *validation)}):
        return None

    def recorded(cases: Sequence[Case]) -> tuple[SplitCase, ...]:
        digests = ((case.name, content[case.name]) for case in cases)
        return tuple(SplitCase(name, dataset.name, found.image, found.label) for name, found in digests)

    data, init_from = member.config.data, member.config.start_weights
    return Split(
        fold=data.fold,
        folds=data.folds,
        fold_seed=data.fold_seed,
        stated=folds_are_stated(training),
        datasets=(dataset.name,),
        channels=member.channels,
        labels=member.labels,
        training=recorded(training),
        validation=recorded(validation),
        seen=() if init_from is None else (Ancestor(init_from, None),),
    )
