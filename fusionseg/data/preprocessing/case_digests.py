"""The digests of cases: from their prepared records where those are current, else by reading the files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fusionseg.data.formats.case import Case
from fusionseg.data.preprocessing.store import PreparedCase
from fusionseg.data.preprocessing.volume import read_digests
from fusionseg.utils.machine import available_cpus

MAX_READERS = 4
"""Volumes in memory at once."""


@dataclass(frozen=True)
class CaseDigests:
    """The content of a case."""

    image: str
    label: str | None
    """None without a label."""


def digests_of(
    cases: Sequence[Case],
    prepared: Mapping[str, PreparedCase] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, CaseDigests]:
    """The digests of each case, by name; a case that cannot be read is left out.

    Args:
        prepared: current records of cases of the same data set, which spare reading the files.
    """
    known = {name: recorded_digests(record) for name, record in (prepared or {}).items()}
    missing = [case for case in cases if case.name not in known]
    found = {case.name: known[case.name] for case in cases if case.name in known}
    with ThreadPoolExecutor(min(MAX_READERS, available_cpus())) as readers:
        for done, (case, digests) in enumerate(zip(missing, readers.map(_read, missing), strict=True), 1):
            if digests is not None:
                found[case.name] = digests
            if progress:
                progress(done, len(missing))
    return found


def recorded_digests(record: PreparedCase) -> CaseDigests:
    return CaseDigests(record.digest, record.label_digest or None)


def _read(case: Case) -> CaseDigests | None:
    try:
        return CaseDigests(*read_digests(case.images, case.label))
    except ValueError:  # whoever needs the case itself says what is wrong with it
        return None
