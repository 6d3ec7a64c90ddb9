"""Offline preparation of a data set: every case once, in parallel, resumable.

A prepared case is used as long as the content of its files and the settings of the preparation stay the same.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from fusionseg.config import DataConfig
from fusionseg.config.data.preprocessing import channel_key
from fusionseg.data.formats.case import Case, missing_channels
from fusionseg.data.formats.dataset import Dataset, open_dataset
from fusionseg.data.formats.problems import CaseError
from fusionseg.data.formats.readers import Readers
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.data.preprocessing.case_folders import CASES, read_cases
from fusionseg.data.preprocessing.memory import MemoryLimit
from fusionseg.data.preprocessing.record import PreparedCase, SourceFile, size_and_time, write_record
from fusionseg.data.preprocessing.store import Store, read_header, settings_key, settings_of, write_case, write_header
from fusionseg.data.preprocessing.volume import check_transforms, load_volume
from fusionseg.data.preprocessing.workers import prepare_cases
from fusionseg.utils.errors import UserError, WriteError
from fusionseg.utils.files import PARTIAL, file_name, user_path, writable_folder
from fusionseg.utils.read_threads import map_reads

Progress = Callable[[int, int], None]

RECORD_READERS = 4
"""Threads that read the records of prepared cases, which lie in a file each."""
LEFTOVER_S = 3600.0
"""Age in seconds from which a half-written case is taken for a leftover of a killed process."""


@dataclass
class PrepareReport:
    """The result of a preparation: the store, and the names of the cases by what was done with them."""

    store: Store
    """The store with all cases that are prepared now."""
    prepared: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Name of the case -> its problem."""

    def __str__(self) -> str:
        lines = [
            f"{self.store.root}: {len(self.prepared)} prepared, {len(self.reused)} already there,"
            f" {len(self.failed)} set aside"
        ]
        lines += [f"  {name}: {reason}" for name, reason in sorted(self.failed.items())]
        return "\n".join(lines)


def open_configured(data: DataConfig) -> Dataset:
    """Open the data set of a configuration, and make its reader and transforms.

    Args:
        data: the section `data`.

    Raises:
        UserError: `data.root` is not set; or with every problem of the data set, the reader or the transforms.
    """
    if data.root is None:
        raise UserError("data.root is not set: add data.root=/path/to/dataset to the command, or root: under data:")
    if data.transforms:
        from fusionseg.data.preprocessing.transforms import open_transforms  # imports MONAI, which takes seconds

        open_transforms(data.transforms)
    dataset = open_dataset(
        data.root,
        data.layout,
        data.label_settings,
        readers=Readers.of(data),
        base_dir=data.base_dir,
        missing_channels=data.missing_channels,
    )
    if problems := channel_problems(data, dataset.channels):
        raise UserError(problems)
    return dataset


def channel_problems(data: DataConfig, channels: Sequence[str]) -> list[str]:
    """List the names of channels in the settings that the data set does not have.

    Args:
        data: the section `data`.
        channels: names of the data set's channels.
    """
    problems = data.intensity.problems(channels)
    wanted = data.crop_foreground.channel if data.crop_foreground is not None else None
    if wanted is not None and channel_key(wanted) not in map(channel_key, channels):
        problems.append(
            f"data.crop_foreground.channel: the data set has no channel {wanted!r} (it has {', '.join(channels)});"
            " correct the name"
        )
    return problems


def store_folder(data: DataConfig, output: str, dataset: Dataset) -> Path:
    """The folder of the prepared cases: one for each data set (its JSON file) and each settings of the preparation.

    Args:
        data: the section `data`.
        output: the setting `output`.
        dataset: the data set that `data` names.
    """
    if data.prepared is not None:
        return user_path(data.prepared)
    return _beside_stores(output, dataset, settings_key(data, dataset.scheme))


def label_values_file(output: str, dataset: Dataset) -> Path:
    """The file that keeps the values of a data set's label files, beside the folders of its prepared cases.

    Args:
        output: the setting `output`.
        dataset: the data set.
    """
    return _beside_stores(output, dataset, "labels.json")


def _beside_stores(output: str, dataset: Dataset, suffix: str) -> Path:
    place = hashlib.sha256(os.fsencode(dataset.place)).hexdigest()[:6]
    return user_path(output) / "prepared" / file_name(f"{dataset.short_name}-{place}-{suffix}")


def prepare(data: DataConfig, dataset: Dataset, store: Store, progress: Progress | None = None) -> PrepareReport:
    """Prepare the training cases that are missing or whose files or settings have changed.

    A case that cannot be prepared is reported and set aside; the others are prepared.

    Args:
        data: the section `data`.
        dataset: the data set that `data` names.
        store: its prepared cases, from `open_store`.
        progress: called with (cases done, all cases).

    Raises:
        UserError: the folder holds cases of other settings, or cannot be written; or a transform fails.
        WriteError: writing failed on the way, such as on a full disk. Cases that are prepared already stay.
    """
    root, records = store.root, dict(store.cases)
    report = PrepareReport(store, reused=list(records))
    todo = [case for case in dataset.training if case.name not in records]
    if todo and data.transforms:
        _check_transforms(data, dataset, todo)
    if todo:  # a complete store is only read: it may belong to another user
        writable_folder(root, "output" if data.prepared is None else "data.prepared")
        _remove_leftovers(root)
        write_header(root, data, dataset.name, dataset.channels, dataset.labels)
    done, total = len(report.reused), len(dataset.training)
    if progress:
        progress(done, total)
    work = partial(_prepare_case, root, data, dataset.scheme, dataset.channels)
    for case, outcome in prepare_cases(work, todo, data):
        if isinstance(outcome, WriteError):  # not a problem of the case: the next ones would fail too
            message = (
                f"{outcome.strerror}; {done} of {total} cases are prepared, and the same command continues from there"
            )
            raise WriteError(outcome.errno, message, str(root))
        if isinstance(outcome, Exception):
            files = "" if isinstance(outcome, CaseError) else f"{', '.join(map(str, _files(case)))}: "
            report.failed[case.name] = f"{files}{outcome}"
        else:
            report.prepared.append(case.name)
            records[case.name] = outcome
        done += 1
        if progress:
            progress(done, total)
    report.store = replace(store, cases={c.name: records[c.name] for c in dataset.training if c.name in records})
    return report


def open_store(data: DataConfig, output: str, dataset: Dataset) -> Store:
    """Open the prepared cases of a data set. Every file of the data set is checked for changes.

    Args:
        data: the section `data`.
        output: the setting `output`.
        dataset: the data set that `data` names.

    Returns:
        The store with the current cases. Cases of the data set that it lacks are not prepared, or out of date.

    Raises:
        UserError: the folder holds cases of other settings, or cannot be read.
    """
    root = store_folder(data, output, dataset)
    _check_header(root, data)
    names = dataset.channels if data.names_channels else None
    current = partial(_current, root, scheme=dataset.scheme, readers=dataset.readers, names=names)
    found = map_reads(current, dataset.training, RECORD_READERS)
    cases = {record.name: record for record in found if record is not None}
    return Store(root, dataset.name, dataset.channels, dataset.scheme, cases)


def _current(
    root: Path, case: Case, scheme: LabelScheme, readers: Readers, names: tuple[str, ...] | None
) -> PreparedCase | None:
    """The record of a case, if it was made from the files and with the map of label values as they are now, lacks the
    same channels, has the channel names that the settings refer to, and has no class that the data set lacks."""
    files = _files(case)
    states: list[tuple[int, int]] | None = None
    for record in read_cases(root, case.name):
        if len(record.sources) != len(files) or max(record.classes, default=0) >= scheme.num_classes:
            continue
        if case.label is not None and record.mapping != scheme.mapping:
            continue
        if (record.missing_channels or ()) != missing_channels(case.images) or record.channel_names != names:
            continue
        if states is None:
            try:
                states = [size_and_time(path, readers) for path in files]
            except FileNotFoundError:
                return None
        known = zip(record.sources, files, states, strict=True)
        if all(source.unchanged(path, readers, state) for source, path, state in known):
            return _with_annotation(_with_new_times(root, record, [mtime_ns for _, mtime_ns in states]), case, scheme)
    return None


def _with_new_times(root: Path, record: PreparedCase, times: list[int]) -> PreparedCase:
    """Record new time stamps of unchanged files that were copied or touched, so that they are not read every time."""
    if times != [source.mtime_ns for source in record.sources]:
        sources = tuple(
            replace(source, mtime_ns=mtime_ns) for source, mtime_ns in zip(record.sources, times, strict=True)
        )
        with suppress(OSError):  # the store of another user, which may only be read
            write_record(root, replace(record, sources=sources))
    return record


def _check_transforms(config: DataConfig, dataset: Dataset, cases: list[Case]) -> None:
    """Apply the transforms to the first case that can be read, so that their faults end the preparation at once."""
    for case in cases:
        with suppress(CaseError):  # the preparation of the case reports it
            check_transforms(case.images, case.label, config, dataset.scheme, len(dataset.channels), dataset.channels)
            return


def _files(case: Case) -> list[Path]:
    return [*case.images, *([case.label] if case.label is not None else [])]


def _prepare_case(
    root: Path, config: DataConfig, scheme: LabelScheme, channels: tuple[str, ...], memory: MemoryLimit, case: Case
) -> PreparedCase:
    readers = Readers.of(config)
    names = channels if config.names_channels else None
    if (record := _current(root, case, scheme, readers, names)) is not None:  # another run prepared it meanwhile
        return record
    sources = [SourceFile.read(path, readers) for path in _files(case)]
    volume = load_volume(case.images, case.label, config, scheme, len(channels), channels, memory)
    if (record := _current(root, case, scheme, readers, names)) is not None:
        return record
    mapped = scheme if case.label is not None else None
    record = write_case(root, case.name, volume, sources, config.dtype, mapped, names)
    return _with_annotation(record, case, scheme)


def _with_annotation(record: PreparedCase, case: Case, scheme: LabelScheme) -> PreparedCase:
    """The record with the classes that the case annotates."""
    if case.annotated is None:
        return record
    classes = scheme.membership[scheme.annotated_outputs(case.annotated)].any(axis=0)
    return replace(record, annotated_classes=tuple(np.flatnonzero(classes).tolist()))


def _remove_leftovers(root: Path) -> None:
    """Delete half-written cases of killed preparations. Another process may still write a younger one."""
    for path in (root / CASES).glob(f"{PARTIAL}*"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > LEFTOVER_S:
                shutil.rmtree(path, ignore_errors=True)


def _check_header(root: Path, config: DataConfig) -> None:
    header = read_header(root)
    if header is None:
        # A preparation killed at its very first file leaves that file's temporary name.
        if os.path.isdir(root) and any(not entry.name.startswith(PARTIAL) for entry in root.iterdir()):
            raise UserError(
                f"{_named(root, config)}: the folder is not empty and holds no prepared cases; choose another"
            )
    elif header.get("settings") != settings_of(config):
        raise UserError(
            f"{_named(root, config)}: was prepared with other settings ({header.get('settings')}, and now"
            f" {settings_of(config)}): choose another folder, or delete this one"
        )


def _named(root: Path, config: DataConfig) -> str:
    """The folder of the store, with the setting that names it, for messages."""
    return f"{root} ({'output' if config.prepared is None else 'data.prepared'})"
