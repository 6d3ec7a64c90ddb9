"""The measurement of predicted cases, in worker processes if it takes long, while the next cases are predicted."""

from __future__ import annotations

import time
from collections.abc import Iterator

from fusionseg.inference.evaluation.measuring import CaseMeasurer, PredictedCase, Score
from fusionseg.utils.machine import available_cpus, available_memory_bytes
from fusionseg.utils.parallel import map_cases, use_one_thread

WORTH_SECONDS = 20.0
"""Work that is left, in seconds, from which on workers are started. Their start takes some seconds of all CPUs."""
_MAX_WORKERS = 16
_BYTES_PER_VOXEL = 64
"""Host memory of a measurement: distances to a surface in float64, the coordinates of the nearest voxels, masks."""
_MEMORY_SHARE = 0.5


def measured_cases(
    cases: Iterator[PredictedCase], measure: CaseMeasurer, count: int, workers: int | None, processes: int = 1
) -> Iterator[tuple[PredictedCase, list[Score] | Exception]]:
    """Measure cases, and yield each with its scores or with the exception. Their order is that of completion.

    The first cases are measured in this process. Worker processes measure the others if these would take longer than
    `WORTH_SECONDS`, or if a number of workers is given.

    Args:
        cases: makes the predicted cases, one at a time.
        measure: computes the scores of a case. Workers get a copy.
        count: number of the cases, at most.
        workers: number of processes; None chooses it by the CPUs and the free memory. 1 starts none.
        processes: that share this host and measure other cases, this one included.
    """
    seconds = 0.0
    for done, case in enumerate(cases, start=1):
        began = time.perf_counter()
        outcome = _measured(measure, case)
        seconds += time.perf_counter() - began
        yield case, outcome
        number = num_workers(case, count - done, processes) if workers is None else min(workers, count - done)
        takes_long = seconds / done * (count - done) > WORTH_SECONDS
        if number > 1 and (takes_long or workers is not None):
            modules = [CaseMeasurer.__module__]
            yield from map_cases(measure, cases, workers=number, initializer=use_one_thread, modules=modules)
            return


def num_workers(case: PredictedCase, remaining: int, processes: int = 1) -> int:
    """The number of workers: one for each CPU, as far as there are cases and memory.

    Args:
        case: a case of the size of the others.
        remaining: number of cases that are to be measured.
        processes: that share the CPUs and the memory of this host, this one included.
    """
    # Two cases wait for each worker, and this process predicts one.
    needed = _BYTES_PER_VOXEL * case.label.size + 3 * (case.prediction.nbytes + case.label.nbytes)
    by_memory = int(_MEMORY_SHARE * available_memory_bytes() / processes / needed)
    return max(1, min(available_cpus() // processes, remaining, by_memory, _MAX_WORKERS))


def _measured(measure: CaseMeasurer, case: PredictedCase) -> list[Score] | Exception:
    try:
        return measure(case)
    except Exception as error:
        return error
