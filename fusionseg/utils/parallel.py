"""One function over many cases, in processes; a case that breaks does not take the others with it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerDied(Exception):
    """A worker process ended without a word: as a rule the kernel killed it for want of memory."""


def map_cases(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    initializer: Callable[[], None] | None = None,
) -> Iterator[tuple[Item, Result | Exception]]:
    """Call `function` for every item and yield each with its result, or with the exception it raised.

    Results come in the order in which they are done. When a worker dies, the few items that were under way
    are tried again one at a time, so that only the one that kills its worker is lost, as `WorkerDied`; then
    the rest goes on with all workers.
    """
    if workers <= 1 or len(items) <= 1:
        for item in items:
            yield item, _call(function, item)
        return
    waiting = deque(items)
    workers = min(workers, len(items))
    while waiting:
        # Two for each worker, so that none waits for its next item.
        again = deque((yield from _until_one_dies(function, waiting, workers, 2 * workers, initializer)))
        while again:
            for item in (yield from _until_one_dies(function, again, 1, 1, initializer)):
                yield (
                    item,
                    WorkerDied("the process that worked on it died (out of memory?): use fewer workers"),
                )


def _until_one_dies(
    function: Callable[[Item], Result],
    waiting: deque[Item],
    workers: int,
    in_flight: int,
    initializer: Callable[[], None] | None,
) -> Generator[tuple[Item, Result | Exception], None, list[Item]]:
    """Take items from `waiting` until it is empty or a worker dies; return those that were lost with it."""
    lost: list[Item] = []
    futures: dict[Future[Result | Exception], Item] = {}
    # spawn: a fork of a process that has started threads (torch has) may hang
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(initializer,))
    try:
        while futures or (waiting and not lost):
            try:
                while waiting and not lost and len(futures) < in_flight:
                    futures[pool.submit(_call, function, waiting[0])] = waiting[0]
                    waiting.popleft()
            except BrokenProcessPool:  # the item was not taken and stays in `waiting`
                if not futures:
                    break
            for future in wait(futures, return_when=FIRST_COMPLETED).done:
                item = futures.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    lost.append(item)
                else:
                    yield item, error if isinstance(error, Exception) else future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return lost


def _start_worker(initializer: Callable[[], None] | None) -> None:
    """End this worker when the process that started it is gone: killed, it cannot tell its workers to stop."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    if initializer is not None:
        initializer()


def _call(function: Callable[[Item], Result], item: Item) -> Result | Exception:
    try:
        return function(item)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # an exception that cannot travel between processes would look like a dead worker
            return RuntimeError(f"{type(error).__name__}: {error}")
        return error
