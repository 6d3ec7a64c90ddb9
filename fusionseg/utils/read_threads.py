"""Reading of many files: in this thread while they are quick to read, and in several threads while they are slow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

SLOW_SECONDS = 1e-3
"""Time of a call from which on threads are worth their cost: a wait for a disk, or a copy of some megabytes.

Short calls hold the interpreter most of the time. Threads then wait for each other: 20 000 small cases took 3 times as
long in 4 threads as in one.
"""
_FIRST = 8
_BLOCK = 256


def map_reads(function: Callable[[Item], Result], items: Sequence[Item], threads: int) -> Iterator[Result]:
    """Call `function` for every item, and yield the results in the order of the items.

    The items are taken in blocks. The first calls of a block are made in this thread and are timed. If they are slow,
    the rest of the block is shared among threads.

    Args:
        function: reads the files of an item. Several threads may call it at once.
        items: the arguments of the calls.
        threads: the largest number of threads.
    """
    with ThreadPoolExecutor(max(1, threads)) as pool:  # it starts a thread when it gets the first call
        for start in range(0, len(items), _BLOCK):
            block = items[start : start + _BLOCK]
            began = time.perf_counter()
            first = [function(item) for item in block[:_FIRST]]
            slow = time.perf_counter() - began > SLOW_SECONDS * min(_FIRST, len(block))
            yield from first
            yield from (pool.map if slow and threads > 1 else map)(function, block[_FIRST:])
