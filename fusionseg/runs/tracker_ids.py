"""The ids of a run in trackers, in `trackers.json`: a run that is resumed stays one run there."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from fusionseg.runs.json_files import read_object
from fusionseg.runs.paths import RunPaths
from fusionseg.utils.files import write_json

log = logging.getLogger("fusionseg")

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
"""An id becomes a part of the names of folders, which a tracker writes and a later start deletes."""


class TrackerIds(MutableMapping[str, str]):
    """The id of a run by the name of the tracker. Each change is written to the run folder at once.

    A start from step 0 forgets all ids: it resumes nothing of the earlier starts, whose configuration may have been
    another one. Their records in the trackers are no part of the new run.

    Args:
        run: the run folder.
        step: the step at which this start begins.
    """

    def __init__(self, run: Path, step: int) -> None:
        self._path = RunPaths(run).trackers
        if step == 0:
            self._path.unlink(missing_ok=True)
        self._ids: dict[str, str] = {}
        for name, value in read_object(self._path).items():
            if isinstance(value, str) and _ID.fullmatch(value):
                self._ids[name] = value
            else:
                log.warning(
                    "%s: the id of %s is none that a tracker gives (expected letters, digits, - and _, got %r): the run"
                    " begins anew there",
                    self._path,
                    name,
                    value,
                )

    def __getitem__(self, name: str) -> str:
        return self._ids[name]

    def __setitem__(self, name: str, value: str) -> None:
        self._ids[name] = value
        write_json(self._path, self._ids)

    def __delitem__(self, name: str) -> None:
        del self._ids[name]
        write_json(self._path, self._ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)
