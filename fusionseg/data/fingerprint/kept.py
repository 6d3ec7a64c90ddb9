"""A fingerprint that an earlier command has written: used again while the files that it describes are unchanged."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from fusionseg.data.fingerprint.fingerprint import Fingerprint, read_json_fingerprint
from fusionseg.data.formats.case import missing_channels
from fusionseg.data.formats.dataset import Dataset
from fusionseg.data.preprocessing.record import size_and_time
from fusionseg.utils.errors import UserError


def source_digest(dataset: Dataset) -> str:
    """Digest of everything that a fingerprint depends on: labels, channels, reader, sizes and time stamps.

    Args:
        dataset: its training cases count.
    """
    cases = []
    for case in dataset.training:
        files = [*case.images, *([case.label] if case.label is not None else [])]
        stamps: list[object] = []
        for path in files:
            try:
                stamps.append([str(path), *size_and_time(path, dataset.readers)])
            except OSError:  # a missing file is a damaged case
                stamps.append([str(path), None])
        cases.append([case.name, stamps, missing_channels(case.images), case.annotated])
    reader = None if dataset.readers.config is None else dataset.readers.config.model_dump(mode="json")
    content = [dataset.name, dataset.channels, dataset.scheme.to_json(), reader, dataset.readers.series, cases]
    return hashlib.blake2b(json.dumps(content).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def kept_fingerprint(path: Path, dataset: Dataset) -> Fingerprint | None:
    """Read the fingerprint in a file, if it is that of these files as they are now. It has no pictures.

    Args:
        path: fingerprint.json; need not exist.
        dataset: the data set.

    Returns:
        None if the data set has to be read.
    """
    if not path.is_file():
        return None
    try:
        kept = read_json_fingerprint(path)
    except UserError:  # of another version, or no fingerprint: it is replaced
        return None
    return kept if kept.source == source_digest(dataset) else None
