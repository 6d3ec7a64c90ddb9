"""The worker processes of a preparation: their start, and the share of the memory that each may take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from fusionseg.config import DataConfig
from fusionseg.data.formats.case import Case
from fusionseg.data.preprocessing.memory import MemoryLimit, MemoryNeeded, note_own_bytes
from fusionseg.data.preprocessing.record import PreparedCase
from fusionseg.utils.machine import available_cpus, available_memory_bytes
from fusionseg.utils.parallel import map_cases, use_one_thread

USABLE = 0.9
"""Share of the free memory that all workers together may take."""

Work = Callable[[MemoryLimit, Case], PreparedCase]


def prepare_cases(
    work: Work, cases: Sequence[Case], data: DataConfig
) -> Iterator[tuple[Case, PreparedCase | Exception]]:
    """Prepare cases in parallel, and yield each with its record or with the exception.

    With `data.worker_memory_gb`, a case that needs more is refused. Without it, the workers share the free memory. A
    case that needs more than its share is prepared after all others, by as many workers as the memory allows.

    Args:
        work: prepares a case within a limit of memory.
        cases: to prepare.
        data: the section `data`.
    """
    workers = max(1, min(data.workers or available_cpus(), len(cases)))
    modules = worker_modules(data)
    if data.worker_memory_gb is not None:
        limit = MemoryLimit(data.worker_memory_gb * 1e9, "data.worker_memory_gb")
        yield from map_cases(partial(work, limit), cases, workers=workers, initializer=_start, modules=modules)
        return
    limit = MemoryLimit(USABLE * available_memory_bytes() / workers)
    large: list[tuple[float, Case]] = []
    for case, outcome in map_cases(partial(work, limit), cases, workers=workers, initializer=_start, modules=modules):
        if isinstance(outcome, MemoryNeeded) and workers > 1:
            large.append((outcome.needed_bytes, case))
        else:
            yield case, outcome
    if large:
        usable = USABLE * available_memory_bytes()
        largest = max((needed for needed, _ in large if needed <= usable), default=usable)
        workers = max(1, min(workers, int(usable // largest)))
        yield from map_cases(
            partial(work, MemoryLimit(usable / workers)),
            [case for _, case in large],
            workers=workers,
            initializer=_start,
            modules=modules,
        )


def worker_modules(data: DataConfig) -> list[str]:
    """The modules that the workers of a preparation need.

    Args:
        data: the section `data`.
    """
    return [
        "fusionseg.data.preprocessing.prepare",
        *(["torch"] if data.spacing is not None else []),
        *(["fusionseg.data.preprocessing.transforms"] if data.transforms else []),
    ]


def _start() -> None:
    """Use one thread, and note the own memory."""
    use_one_thread()
    note_own_bytes()
