"""The classes that occur in the label files, for `data.stratify: classes`: read once, and kept in a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from fusionseg.data.formats.case import Case
from fusionseg.data.formats.case_file import read_file
from fusionseg.data.formats.dataset import Dataset
from fusionseg.data.formats.problems import Findings
from fusionseg.data.formats.readers import Readers
from fusionseg.data.formats.source_files import files_of
from fusionseg.data.formats.voxel_checks import count_values, label_numbers
from fusionseg.observability.progress import counting_progress
from fusionseg.utils.files import write_json
from fusionseg.utils.machine import available_cpus

_MAX_VOLUMES = 4
"""Number of volumes that are in memory at once."""


def occurring_classes(dataset: Dataset, cases: Sequence[Case], kept: Path | None) -> dict[str, tuple[str, ...]]:
    """Find the foreground classes that occur in the label file of each case.

    The files decide, not the prepared cases: the folds must not depend on the voxel size of a configuration. A case
    whose label cannot be read, or that has none, counts as one without classes; the preparation reports it.

    Args:
        dataset: of the cases.
        cases: to look at.
        kept: a file that keeps the values of the label files from one start to the next; None keeps nothing.

    Returns:
        The names of the classes, in the order of their indices, by name of the case.
    """
    known = _read_kept(kept)
    labels = {case.name: case.label for case in cases if case.label is not None}
    states = {name: _state(path, dataset.readers) for name, path in labels.items()}
    missing = [
        name for name, path in labels.items() if str(path) not in known or known[str(path)].get("state") != states[name]
    ]
    if missing:
        work = partial(_values, dataset.readers)
        with ThreadPoolExecutor(min(_MAX_VOLUMES, available_cpus())) as pool, counting_progress("labels") as progress:
            for done, (name, values) in enumerate(
                zip(missing, pool.map(work, [labels[name] for name in missing]), strict=True), 1
            ):
                known[str(labels[name])] = {"state": states[name], "values": values}
                progress(done, len(missing))
        if kept is not None:
            with suppress(OSError):  # the labels are read again the next time
                write_json(kept, known)
    found = {}
    for case in cases:
        occurring = set(known[str(case.label)]["values"] if case.label is not None else ())
        found[case.name] = tuple(
            label.name for label in dataset.scheme.classes[1:] if not occurring.isdisjoint(label.values)
        )
    return found


def _read_kept(path: Path | None) -> dict[str, dict[str, Any]]:
    """The values of label files that an earlier start has read: {path: {"state": ..., "values": [...]}}."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    except (OSError, ValueError):
        return {}
    entries = content.items() if isinstance(content, dict) else ()
    return {key: entry for key, entry in entries if isinstance(entry, dict) and isinstance(entry.get("values"), list)}


def _state(path: Path, readers: Readers) -> list[list[int]] | None:
    """Size and time stamp of each file of a label; None if one is missing."""
    try:
        states = [file.stat() for file in files_of(path, readers)]
    except OSError:
        return None
    return [[state.st_size, state.st_mtime_ns] for state in states]


def _values(readers: Readers, path: Path) -> list[int]:
    """The whole values in a label file, in ascending order; none if it cannot be read."""
    file = read_file(path, readers, Findings(), "label")
    if file is None:
        return []
    return sorted(int(value) for value in count_values(label_numbers(file.voxels)) if float(value).is_integer())
