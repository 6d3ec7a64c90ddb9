"""Reading, prediction and writing of cases at the same time: one thread reads ahead, one thread writes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, ParamSpec, TypeVar

from fusionseg.data.preprocessing.memory import MemoryLimit, MemoryNeeded
from fusionseg.utils.machine import available_memory_bytes

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
Result = TypeVar("Result")
Value = TypeVar("Value")
P = ParamSpec("P")

AHEAD = 2
"""Cases that are read while another one is predicted."""
_UNWRITTEN = 2
"""Results in memory while the next case is predicted: one is written, and one waits."""
_SHARE_OF_MEMORY = 0.25
"""Share of the free memory that a case may take while other cases are in memory. A larger one is read alone."""


@dataclass(frozen=True)
class Stages(Generic[Item, Loaded, Result]):
    """The work on a case. `read` runs in a thread of its own, and so does `write`."""

    read: Callable[[Item, MemoryLimit | None], Loaded]
    predict: Callable[[Item, Loaded], Result]
    write: Callable[[Item, Result], None]
    is_large: Callable[[Result], bool] = lambda result: False
    """Tells that a result must be written before the next case is predicted."""
    processes: int = 1
    """Processes that share the memory of this host and take other cases, this one included."""


@dataclass(frozen=True)
class Finished(Generic[Item]):
    """A case after all its stages, or after the stage that failed, with the seconds of each."""

    item: Item
    read_s: float
    predict_s: float = 0.0
    write_s: float = 0.0
    error: Exception | None = None


def overlapped(items: Sequence[Item], stages: Stages[Item, Loaded, Result]) -> Generator[Finished[Item], None, None]:
    """Take cases through the three stages, and yield each one in the order of `items` once it is written or has failed.

    While a case is predicted, the next `AHEAD` cases are read, and the one before it is written. A case that needs much
    memory is read while no other one is there. When the generator is closed, a file that is being written is written to
    its end, and the cases that were read are dropped.

    Args:
        items: the cases.
        stages: the work on each. An error of a stage is yielded with its case, and the others go on.
    """
    reader, writer = _Reader(items, stages.read, _SHARE_OF_MEMORY / stages.processes), ThreadPoolExecutor(1, "writer")
    unfinished: deque[_Unfinished[Item]] = deque()
    try:
        for item in items:
            loaded, read_s = reader.next()
            result, predict_s = _timed(_predict, stages, item, loaded)
            del loaded
            one = _Unfinished(item, read_s, predict_s, error=result if isinstance(result, Exception) else None)
            is_large = False
            if not isinstance(result, Exception):
                is_large = stages.is_large(result)
                one.writing = writer.submit(_timed, stages.write, item, result)
            del result  # the writer alone holds it
            unfinished.append(one)
            while unfinished and (is_large or len(unfinished) > _UNWRITTEN or unfinished[0].is_done()):
                yield unfinished.popleft().finish()
        while unfinished:
            yield unfinished.popleft().finish()
    finally:
        reader.close()
        writer.shutdown(cancel_futures=True)


def _predict(stages: Stages[Item, Loaded, Result], item: Item, loaded: Loaded | Exception) -> Result:
    """Predict a case.

    Raises:
        Exception: of the reading, or of the prediction.
    """
    if isinstance(loaded, Exception):
        raise loaded
    return stages.predict(item, loaded)


@dataclass
class _Unfinished(Generic[Item]):
    """A case that was predicted, or that has failed."""

    item: Item
    read_s: float
    predict_s: float
    error: Exception | None
    writing: Future[tuple[Exception | None, float]] | None = None

    def is_done(self) -> bool:
        return self.writing is None or self.writing.done()

    def finish(self) -> Finished[Item]:
        """Wait until the case is written."""
        if self.writing is None:
            return Finished(self.item, self.read_s, self.predict_s, error=self.error)
        error, write_s = self.writing.result()
        return Finished(self.item, self.read_s, self.predict_s, write_s, error)


class _Reader(Generic[Item, Loaded]):
    """Reads cases in their order, some of them ahead."""

    def __init__(
        self, items: Sequence[Item], read: Callable[[Item, MemoryLimit | None], Loaded], share_of_memory: float
    ) -> None:
        self._items = items
        self._read = read
        self._share_of_memory = share_of_memory
        self._pool = ThreadPoolExecutor(1, "reader")
        self._taken = 0
        self._ahead: deque[Future[tuple[Loaded | Exception, float]]] = deque()

    def next(self) -> tuple[Loaded | Exception, float]:
        """Take the next case or its error, with its seconds. The cases after it are read from now on."""
        self._submit(1)
        loaded, seconds = self._ahead.popleft().result()
        item = self._items[self._taken]
        self._taken += 1
        if isinstance(loaded, MemoryNeeded):  # too large beside other cases: it is read alone
            del loaded
            for future in self._ahead:
                future.cancel() or future.result()
            self._ahead.clear()
            loaded, seconds = _timed(self._read, item, None)
        self._submit(AHEAD)
        return loaded, seconds

    def _submit(self, count: int) -> None:
        """Have `count` cases ahead, or all that are left."""
        for item in self._items[self._taken + len(self._ahead) : self._taken + count]:
            self._ahead.append(self._pool.submit(self._read_beside_others, item))

    def _read_beside_others(self, item: Item) -> tuple[Loaded | Exception, float]:
        return _timed(self._read, item, MemoryLimit(available_memory_bytes() * self._share_of_memory))

    def close(self) -> None:
        """Drop what was read."""
        self._pool.shutdown(cancel_futures=True)
        self._ahead.clear()


def _timed(function: Callable[P, Value], *arguments: P.args, **options: P.kwargs) -> tuple[Value | Exception, float]:
    """Call a function; return its value or its exception, and the seconds."""
    start = time.monotonic()
    try:
        return function(*arguments, **options), time.monotonic() - start
    except MemoryNeeded as error:
        return error.with_traceback(None), time.monotonic() - start  # the frames of the traceback hold the arrays
    except Exception as error:
        return error, time.monotonic() - start
