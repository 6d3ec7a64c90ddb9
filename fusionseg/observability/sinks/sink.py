"""The interface of a sink, and the list of the sinks of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger("fusionseg")

Picture: TypeAlias = "NDArray[np.float32]"
"""RGB in [0, 1], (3, H, W)."""


@dataclass(frozen=True)
class RunStart:
    """A start of a run: the first one, or one that resumes the run."""

    folder: Path
    """The run folder."""
    name: str
    """The name of the run."""
    step: int
    """The step at which this start begins: 0, or that of the checkpoint that the run resumes from."""
    config: Mapping[str, Any]
    """The configuration as plain values."""
    config_text: str
    """The configuration as YAML."""
    environment: Mapping[str, Any]
    """Versions, commit, command and devices, as in environment.json."""
    score: str
    """The name of the score that the best checkpoint is chosen by, such as dice."""
    note: str = ""
    """A remark about the values of the run, for people."""


@dataclass(frozen=True)
class RunEnd:
    """The end of a start of a run."""

    record: Mapping[str, Any] = field(default_factory=dict)
    """The end record, as in metrics.jsonl: status, reason, best score, times. Empty if none could be written."""
    is_final: bool = False
    """Nothing is left to train."""
    has_failed: bool = True
    """An error ended this start. Without it, and not final: a signal interrupted the run, which can be resumed."""
    is_abandoned: bool = False
    """The sink has failed, and the run goes on without it: close what is open here. How the run ends is not known."""


class Sink:
    """A receiver of the records of a run. A subclass overrides the methods that it needs.

    Rank 0 calls the methods, in the thread of the training: a method that takes long delays the training. An exception
    becomes one warning, and the run continues without the sink.
    """

    def start(self, run: RunStart) -> Mapping[str, int] | None:
        """Open the sink for a start of the run.

        Returns:
            None for a sink that receives the records of this start alone. A sink that knows what it already has
            returns the last step of each kind of record ("train", "val", "gpu", "event"): it receives the records after
            that step, also those of earlier starts, and none a second time. An empty mapping stands for a sink that has
            no record.
        """
        return None

    def record(self, record: Mapping[str, Any]) -> None:
        """Receive a record.

        Args:
            record: has `kind` ("train", "val", "gpu" for the counters of the GPUs, or "event" for a spike of the loss
                and the like) and `step`; the other fields are those of metrics.jsonl. A field may be a number, a text,
                a list or a table. A number that was not finite is None.
        """

    def image(self, name: str, image: Picture, step: int) -> None:
        """Receive a picture.

        Args:
            name: of the picture: "validation".
            image: RGB in [0, 1], (3, H, W).
            step: completed steps.
        """

    def finish(self, end: RunEnd) -> None:
        """Close the sink at the end of this start, or after an error of the sink (`RunEnd.is_abandoned`)."""


@dataclass(eq=False)
class _Open:
    """An open sink."""

    key: str
    sink: Sink
    known: Mapping[str, int] = field(default_factory=dict)
    """The last step that it already has, by kind of record."""

    def lacks(self, kind: str, step: int) -> bool:
        return step > self.known.get(kind, -1)


class Sinks:
    """The sinks of a run. A sink that raises gives one warning, and is left out from then on."""

    def __init__(self, makers: Sequence[tuple[str, Callable[[], Sink]]]) -> None:
        """Args:
        makers: for each sink its configuration key, for the warning, and the function that makes it.
        """
        self._open: list[_Open] = []
        for key, make in makers:
            try:
                self._open.append(_Open(key, make()))
            except Exception as error:  # a sink may raise anything, and a run must not end for it
                _warn(key, error)

    def start(
        self, run: RunStart, records: Sequence[Mapping[str, Any]], picture: Callable[[int], Picture | None]
    ) -> None:
        """Open all sinks. Those that know what they have receive what they lack of the earlier starts.

        Args:
            run: the start of the run.
            records: of the earlier starts, up to the step at which this one begins.
            picture: reads the validation picture of a step; None if there is none.
        """

        def open_sink(each: _Open) -> None:
            known = each.sink.start(run)
            if known is None:
                return
            each.known = known
            for record in records:
                kind, step = record["kind"], record["step"]
                if each.lacks(kind, step):
                    each.sink.record(record)
                    if kind == "val" and (image := picture(step)) is not None:
                        each.sink.image("validation", image, step)

        self._call(open_sink)

    def record(self, record: Mapping[str, Any]) -> None:
        """Hand a record to the sinks that lack it; see `Sink.record`."""
        kind, step = record["kind"], record["step"]
        self._call(lambda each: each.sink.record(record) if each.lacks(kind, step) else None)

    def image(self, name: str, image: Picture, step: int) -> None:
        """Hand the picture of a validation to the sinks that lack it; see `Sink.image`."""
        self._call(lambda each: each.sink.image(name, image, step) if each.lacks("val", step) else None)

    def finish(self, end: RunEnd) -> None:
        """Close all sinks; see `Sink.finish`. A further call does nothing."""
        ending, self._open = self._open, []
        for each in ending:
            try:
                each.sink.finish(end)
            except Exception as error:
                _warn(each.key, error)

    def _call(self, action: Callable[[_Open], None]) -> None:
        """Do something with each open sink, and close those that fail."""
        for each in list(self._open):
            try:
                action(each)
            except Exception as error:
                _warn(each.key, error)
                self._open.remove(each)
                with suppress(Exception):  # it has failed already, and the warning is said
                    each.sink.finish(RunEnd(has_failed=False, is_abandoned=True))


def _warn(key: str, error: Exception) -> None:
    text = f"{type(error).__name__}: {error}".partition("\n")[0]
    log.warning("%s: %s; the run continues without it", key, text)
