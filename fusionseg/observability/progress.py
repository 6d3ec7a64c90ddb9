"""Progress on the screen: one live line on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import ClassVar, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from fusionseg.observability.ranges import progressed
from fusionseg.utils.logs import is_quiet

Item = TypeVar("Item")

PLAIN_EVERY_S = 10.0
"""Least time between two plain lines, in seconds."""


def duration(seconds: float) -> str:
    """Format seconds for people: 45s, 3m20s, 2h05m, 3d04h."""
    seconds = max(0, round(seconds))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days}d{hours % 24:02d}h"
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{minutes}m{seconds % 60:02d}s" if minutes else f"{seconds}s"


class LiveLine:
    """Context manager that shows the live line `_live` while it is entered; `_live` is None without a terminal."""

    _live: Progress | None = None
    _shown: ClassVar[list[Progress]] = []
    """The live line that the terminal shows now: a terminal can show one at a time."""

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
            self._shown.append(self._live)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._shown.remove(self._live)
            self._live.stop()


class TrainingProgress(LiveLine):
    """Progress of a training: step, loss, score, speed, share of time spent on data, memory, time left."""

    def __init__(self, total: int, done: int, *, shown: bool) -> None:
        """Args:
        total: optimizer steps of the whole run.
        done: steps that earlier starts of the run have done.
        shown: False prints nothing (ranks other than 0).
        """
        self.total = total
        self.shown = shown and not is_quiet()
        self.awaits_first_step = self.shown
        """True until the first measurements have been shown."""
        self._score = ""
        self._measured: list[str] = []
        self._step_s = 0.0
        self._printed = -PLAIN_EVERY_S
        if self.shown and sys.stderr.isatty():
            columns = (
                TextColumn("{task.fields[label]} {task.completed}/{task.total}"),
                BarColumn(20),
                TextColumn("{task.description}"),
            )
            self._live = Progress(*columns, console=Console(stderr=True))
            self._task = self._live.add_task("", total=total, completed=done, label="step")

    def score(self, measure: str, value: float) -> None:
        """Set the validation score that the next lines show.

        Args:
            measure: name of the score, such as dice.
            value: the score, measured on the preprocessed grid.
        """
        self._score = f"{measure} {value:.4f} (prepared grid)"

    def step(self, done: int) -> None:
        """Set the number of completed steps."""
        if self.shown and not self.awaits_first_step and done < self.total:
            self._show(done)

    def record(
        self,
        done: int,
        loss: float | None,
        samples_per_s: float,
        data_share: float | None,
        memory_gb: float,
        step_s: float,
        mfu: float | None = None,
    ) -> None:
        """Show the measurements of a step.

        Args:
            done: completed steps.
            loss: mean loss since the last measurements; None if no step was finite.
            samples_per_s: samples per second over all ranks.
            data_share: share of the step time spent on data, 0 to 1; None if it is not known.
            memory_gb: peak memory in GB.
            step_s: seconds of a step.
            mfu: model FLOP utilisation, 0 to 1; None if it is not known.
        """
        if not self.shown:
            return
        self.awaits_first_step = False
        self._step_s = step_s
        self._measured = [
            "loss -" if loss is None else f"loss {loss:.4f}",
            self._score,
            f"{samples_per_s:.2f} samples/s",
            "" if data_share is None else f"data {data_share:.0%}",
            "" if mfu is None else f"MFU {mfu:.0%}",
            f"{memory_gb:.1f} GB",
        ]
        self._show(done)

    def _show(self, done: int) -> None:
        """Update the live line, or print a line if the last one is ten seconds old or the run is at its end."""
        left = f"{duration((self.total - done) * self._step_s)} left"
        text = "  ".join(part for part in (*self._measured, left) if part)
        if self._live is not None:
            self._live.update(self._task, completed=done, description=text)
        elif time.monotonic() - self._printed >= PLAIN_EVERY_S or done == self.total:
            self._printed = time.monotonic()
            print(f"step {done}/{self.total}  {text}", file=sys.stderr, flush=True)


@contextmanager
def counting_progress(label: str, *, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Yield a function `progress(done, total)` that shows a bar on a terminal, a line every ten seconds elsewhere.

    While a training shows its live line, the bar is a second line below it.

    Args:
        label: text in front of the count, such as "preparing".
        shown: False shows nothing (ranks other than 0).
    """
    with _shown_progress(label, shown=shown) as show:

        def progress(done: int, total: int) -> None:
            progressed()
            show(done, total)

        yield progress


@contextmanager
def _shown_progress(label: str, *, shown: bool) -> Iterator[Callable[[int, int], None]]:
    if not shown or is_quiet():
        yield lambda done, total: None
    elif LiveLine._shown:
        live = LiveLine._shown[-1]
        task = live.add_task("", total=None, label=label)
        try:
            yield lambda done, total: live.update(task, completed=done, total=total)
        finally:
            live.remove_task(task)
    elif sys.stderr.isatty():
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        yield _Lines(label)


def with_progress(label: str, items: Sequence[Item], *, shown: bool = True) -> Iterator[Item]:
    """Yield the items, and show how many of them are done; see `counting_progress`.

    Args:
        label: text in front of the count, such as "validating".
        items: the items of a loop.
        shown: False shows nothing (ranks other than 0).
    """
    with counting_progress(label, shown=shown) as progress:
        for done, item in enumerate(items):
            progress(done, len(items))
            yield item
        progress(len(items), len(items))


class _Lines:
    """A line every ten seconds."""

    def __init__(self, label: str) -> None:
        self.label = label
        self._printed = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self._printed >= PLAIN_EVERY_S:
            self._printed = time.monotonic()
            print(f"{self.label} {done}/{total}", file=sys.stderr, flush=True)
