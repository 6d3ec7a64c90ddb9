"""Parallel calls of a function for many cases, in worker processes. A failed case does not affect the others.

Workers are forked from a server process, which has imported the modules of the work once. The server has no threads: a
fork of a process with threads, such as those of torch, may hang.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


class WorkerDied(Exception):
    """A worker process that was killed, in most cases by the kernel for lack of memory."""


class _Waiting(Generic[Item]):
    """Items that no worker has got yet. They are taken from their source one at a time, as workers become free."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._source = iter(items)
        self._next: deque[Item] = deque()

    def __bool__(self) -> bool:
        if not self._next:
            self._next.extend(islice(self._source, 1))
        return bool(self._next)

    def first(self) -> Item:
        """The next item, which stays. `bool` tells whether there is one."""
        return self._next[0]

    def remove_first(self) -> None:
        """Take the item that `first` returned away."""
        self._next.popleft()


def start_server(modules: Sequence[str]) -> None:
    """Start the server process of the workers, which imports modules while this process goes on.

    Args:
        modules: names of the modules that the work needs. A server that runs already keeps its own.
    """
    if _METHOD == "forkserver":
        multiprocessing.forkserver.set_forkserver_preload(list(modules))
        multiprocessing.forkserver.ensure_running()


def stop_server() -> None:
    """End the server process of the workers, which would hold its memory until this process ends."""
    if _METHOD == "forkserver":
        multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]  # there is no public way


def use_one_thread() -> None:
    """Keep the numerical libraries of a worker process to one thread, because the parallelism is over the cases."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read by torch when it is imported
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def map_cases(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    initializer: Callable[[], None] | None = None,
    modules: Sequence[str] = (),
) -> Iterator[tuple[Item, Result | Exception]]:
    """Call `function` for every item, and yield each item with its result or with the exception that it raised.

    Results are yielded as they are completed. When a worker dies, the items in progress are tried again one at a time.
    The item that kills its worker again is yielded with `WorkerDied`, and the remaining items use all workers again.

    Args:
        function: takes an item. With several workers, function, items and results must be picklable.
        items: the arguments of the calls. Those of a generator are made one at a time, in this process, while the
            workers work: at most two for each worker exist at once.
        workers: number of processes. With 1 worker or a sequence of 1 item, the function is called in this process.
        initializer: called once in each worker process, and not at all in this process.
        modules: imported once for all workers; see `start_server`.
    """
    if isinstance(items, Sequence):
        workers = min(workers, len(items))
    if workers <= 1:
        for item in items:
            yield item, _call(function, item)
        return
    waiting = _Waiting(items)
    start_server(modules)
    try:
        while waiting:
            # Two items for each worker, so that no worker waits for its next item.
            again = _Waiting((yield from _until_one_dies(function, waiting, workers, 2 * workers, initializer)))
            while again:
                for item in (yield from _until_one_dies(function, again, 1, 1, initializer)):
                    yield (
                        item,
                        WorkerDied("its worker process was killed, probably for lack of memory: use fewer workers"),
                    )
    finally:
        stop_server()


def _until_one_dies(
    function: Callable[[Item], Result],
    waiting: _Waiting[Item],
    workers: int,
    in_flight: int,
    initializer: Callable[[], None] | None,
) -> Generator[tuple[Item, Result | Exception], None, list[Item]]:
    """Process the items of `waiting` until none is left or a worker dies; return the items in progress at that time."""
    lost: list[Item] = []
    futures: dict[Future[Result | Exception], Item] = {}
    context = multiprocessing.get_context(_METHOD)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(initializer,))
    try:
        while futures or (waiting and not lost):
            try:
                while not lost and len(futures) < in_flight and waiting:
                    item = waiting.first()
                    with _main_module_hidden(function):  # `submit` starts the workers
                        futures[pool.submit(_call, function, item)] = item
                    waiting.remove_first()
            except BrokenProcessPool:  # the item was not accepted and stays in `waiting`
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


@contextmanager
def _main_module_hidden(function: Callable[..., object]) -> Iterator[None]:
    """Keep new workers from importing the program's main module again, unless the function is defined in it.

    The import would take time, and would run a script that has no `if __name__ == "__main__"` once more in each worker.
    """
    while isinstance(function, partial):
        function = function.func
    if getattr(function, "__module__", None) == "__main__":
        yield
        return
    main = sys.modules["__main__"]
    kept: dict[str, Any] = {name: vars(main)[name] for name in ("__spec__", "__file__") if name in vars(main)}
    vars(main).pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update(kept)


def _start_worker(initializer: Callable[[], None] | None) -> None:
    """Initialise a worker. It ends when its parent ends, since a parent that was killed cannot stop its workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    if initializer is not None:
        initializer()


def _call(function: Callable[[Item], Result], item: Item) -> Result | Exception:
    """Return the result, or the exception in a form that can be pickled."""
    try:
        return function(item)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # an exception that cannot be pickled would look like a worker that died
            return RuntimeError(f"{type(error).__name__}: {error}")
        return error
