"""One call of a prediction: its cases go through the stages, and each one is recorded."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from fusionseg.data.formats.case import Case
from fusionseg.data.formats.image_file import VolumeError
from fusionseg.data.formats.problems import CaseError
from fusionseg.inference.calls.overlap import Finished, overlapped
from fusionseg.inference.calls.stages import CaseFacts, PredictionStages
from fusionseg.observability.progress import counting_progress
from fusionseg.runs.json_files import JsonObject
from fusionseg.runs.predictions import COMPLETE, INCOMPLETE, KEPT, NO_MASK, STOPPED, WRITTEN, PredictionRecord
from fusionseg.utils.errors import WriteError
from fusionseg.utils.files import remove_left_over, user_path

log = logging.getLogger("fusionseg")


@dataclass
class PredictionCall:
    """The work of one process on its cases."""

    cases: Sequence[Case]
    """All cases of this process."""
    due: Sequence[Case]
    """Those of them that need a mask."""
    files: Mapping[str, Mapping[str, Path]]
    """For each case by name, the files that are written: `mask`, `probabilities`."""
    work: PredictionStages
    record: PredictionRecord
    output: Path
    """The folder for the masks."""
    failed: dict[str, str] = field(default_factory=dict)
    """The problem of each case that failed, by its name."""
    trained_on: list[str] = field(default_factory=list)
    """Names of the cases that a network was trained on."""
    _written: int = 0

    def run(self, *, shown: bool = True) -> None:
        """Predict the cases that are due, write their masks, and record all cases.

        A case that fails is reported, and the others are predicted.

        Args:
            shown: show the progress.

        Raises:
            WriteError: a mask or the record cannot be written. The masks that were written stay.
        """
        kept = len(self.cases) - len(self.due)
        remove_left_over(path for case in self.due for path in self.files[case.name].values())
        with self._recorded(), counting_progress("predicting", shown=shown) as progress:
            due = {case.name for case in self.due}
            for case in self.cases:
                if case.name not in due:
                    self.record.add(case.name, KEPT, self._entry(case))
            progress(kept, len(self.cases))
            with closing(overlapped(self.due, self.work.stages())) as finished:
                for done, one in enumerate(finished, start=kept + 1):
                    self._take(one)
                    progress(done, len(self.cases))

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Record the end of the call, however it ends.

        Raises:
            WriteError: a file cannot be written; with the number of masks that are there.
        """
        try:
            yield
            self.record.end(INCOMPLETE if self.failed else COMPLETE)
        except BaseException as error:
            with suppress(WriteError):  # the first error is the one to report
                self.record.end(STOPPED)
            if not isinstance(error, WriteError):
                raise
            there = len(self.cases) - len(self.due) + self._written
            written = f"{there} of {len(self.cases)} masks are there, and --skip-existing keeps them"
            raise WriteError(error.errno, f"{error.strerror}; {written}", str(self.output)) from None

    def _take(self, one: Finished[Case]) -> None:
        """Record a case that is written or has failed.

        Raises:
            Exception: the error of the case, if it is not the fault of the case.
        """
        case, error = one.item, one.error
        facts = self.work.facts.pop(case.name, None)
        if error is None and facts is not None:
            self._written += 1
            self.trained_on += [case.name] if facts.is_trained_on else []
            self.record.add(case.name, WRITTEN, self._entry(case, facts, one))
            return
        if error is None or not isinstance(error, CaseError | VolumeError):
            raise error or RuntimeError(f"{case.name}: no result")
        text = str(error) if isinstance(error, CaseError) else f"{case.images[0]}: {error}"
        self.failed[case.name] = text
        log.error("%s", text)
        images = [str(_absolute(path)) for path in case.images]
        self.record.add(case.name, NO_MASK, {"images": images, "problem": text})

    def _entry(
        self, case: Case, facts: CaseFacts | None = None, one: Finished[Case] | None = None
    ) -> dict[str, object]:
        """The entry of a case that has a mask, for the record."""
        entry: JsonObject = {"images": [str(_absolute(path)) for path in case.images]}
        entry |= {kind: path.name for kind, path in self.files[case.name].items()}
        if facts is not None:
            entry |= {"shape": facts.shape, "spacing_mm": facts.spacing_mm}
        if one is not None:
            seconds = {"read_s": one.read_s, "predict_s": one.predict_s, "write_s": one.write_s}
            entry |= {name: round(value, 4) for name, value in seconds.items()}
        return entry


def _absolute(path: Path) -> Path:
    return user_path(str(path)).absolute()
