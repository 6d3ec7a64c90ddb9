"""Digests of cases, from their prepared records if these are current, else from the files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from fusionseg.data.formats.dataset import Case, Dataset
from fusionseg.data.formats.readers import Readers
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.data.preprocessing.store import PreparedCase
from fusionseg.data.preprocessing.volume import read_digests
from fusionseg.utils.machine import available_cpus

MAX_VOLUMES = 4
"""Number of volumes that are in memory at once."""


@dataclass(frozen=True)
class CaseDigests:
    """The identity of a case by its voxels.

    Args:
        image: digest of the image.
        label: digest of the label; None without one.
    """

    image: str
    label: str | None


def digests_of(
    cases: Sequence[Case],
    dataset: Dataset,
    prepared: Mapping[str, PreparedCase] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, CaseDigests]:
    """Find the digests of cases.

    Args:
        cases: of the data set.
        dataset: the data set. The digest of a label is that of its class indices.
        prepared: current records of its cases; the files of these are not read.
        progress: called with (cases read, cases to read).

    Returns:
        The digests by name of the case. A case that cannot be read is left out.
    """
    known = {name: recorded_digests(record) for name, record in (prepared or {}).items()}
    missing = [case for case in cases if case.name not in known]
    found = {case.name: known[case.name] for case in cases if case.name in known}
    with ThreadPoolExecutor(min(MAX_VOLUMES, available_cpus())) as pool:
        for done, (case, digests) in enumerate(
            zip(missing, pool.map(partial(_read, dataset.scheme, dataset.readers), missing), strict=True), 1
        ):
            if digests is not None:
                found[case.name] = digests
            if progress:
                progress(done, len(missing))
    return found


def recorded_digests(record: PreparedCase) -> CaseDigests:
    """The digests in the record of a prepared case.

    Args:
        record: of the case.
    """
    return CaseDigests(record.digest, record.label_digest or None)


def _read(scheme: LabelScheme, readers: Readers, case: Case) -> CaseDigests | None:
    try:
        return CaseDigests(*read_digests(case.images, case.label, scheme, readers))
    except ValueError:  # the preparation of the case reports the problem
        return None
