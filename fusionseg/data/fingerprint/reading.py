"""The fingerprint of a data set, read from its files in parallel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fusionseg.data.checks.dataset_check import check_dataset
from fusionseg.data.fingerprint.fingerprint import Fingerprint
from fusionseg.data.formats.dataset import Dataset


def read_fingerprint(
    dataset: Dataset, *, workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> Fingerprint:
    """Measure the training cases of a data set. Cases with errors are listed in the fingerprint, and none is raised.

    `check_dataset(dataset, fingerprint=True)` gives the same fingerprint and the report of all problems in one reading.

    Args:
        dataset: opened with `require_files=False`.
        workers: number of processes; None is one for each CPU that this job may use. 1 uses this process.
        progress: called with (cases done, all cases).
    """
    training = replace(dataset, testing=())
    fingerprint = check_dataset(training, fingerprint=True, workers=workers, progress=progress).fingerprint
    assert fingerprint is not None  # asked for
    return fingerprint
