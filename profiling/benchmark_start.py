"""Benchmark of the start of a training: seconds from the command to the first step, by phase and number of cases.

    python profiling/benchmark_start.py --folder FOLDER [--cases 500 20000] [--ranks 1] [--rounds 3] [--json start.json]

For each number of cases the program writes a data set of small volumes into FOLDER and prepares it; both are kept for
the next call. Then it starts `fusionseg train` in a new process, with a small network and the cache in host memory, and
ends it after the first step. The phases are those of the end record of the run; `start` has everything that no other
phase has: imports, the list of the cases, the check of their files for changes, the network. With several ranks
torchrun starts them, and the phases are those of rank 0.

The seconds of the processors are those of all processes of the run, the first steps and the checkpoint included. Other
load on the machine changes them less than the wall time.

The runs are started in turn, so that other load on the machine affects all of them alike; the table has the medians.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from many_cases import ManyCases

from fusionseg.performance.benchmarking import publish
from fusionseg.performance.machine import machine_info, machine_line
from fusionseg.runs.records import RunStatus, last_end
from fusionseg.utils.exit_status import run
from fusionseg.utils.logs import start_logging
from fusionseg.utils.tables import counted, markdown_table

PHASES = ("start", "prepare", "cache")
"""The phases before the first step."""


def start_run(cases: ManyCases, ranks: int) -> dict[str, float]:
    """Train until the first step is saved; return the seconds of the phases before it, and those of the processors."""
    before = processor_seconds()
    with cases.training(ranks):
        pass
    end = last_end(cases.run)
    if end is None or end["status"] != RunStatus.INTERRUPTED:
        raise RuntimeError(f"{cases.log}: the run did not end in order")
    phases = {phase: end["phases_s"].get(phase, 0.0) for phase in PHASES}
    return {**phases, "processors": processor_seconds() - before}


def processor_seconds() -> float:
    """Seconds of the processors that the ended child processes have taken, in user and system mode."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(folder: Path, counts: list[int], size: int, ranks: int, rounds: int) -> dict[str, Any]:
    """Measure the starts; the result has JSON values."""
    sets = [ManyCases(folder, cases, size) for cases in counts]
    for cases in sets:
        cases.prepare()
    times: dict[int, list[dict[str, float]]] = {cases: [] for cases in counts}
    for _ in range(rounds):
        for cases in sets:
            times[cases.cases].append(start_run(cases, ranks))
    return {
        "machine": machine_info(torch.device("cpu")),
        "size": size,
        "ranks": ranks,
        "rounds": rounds,
        "times_s": {str(cases): found for cases, found in times.items()},
    }


def markdown(result: dict[str, Any]) -> str:
    """Return the table of the medians."""
    rows = [("cases", *(f"{phase} s" for phase in PHASES), "to the first step s", "processors s")]
    for cases, times in result["times_s"].items():
        medians = [statistics.median(one[phase] for one in times) for phase in PHASES]
        total = statistics.median(sum(one[phase] for phase in PHASES) for one in times)
        processors = statistics.median(one["processors"] for one in times)
        rows.append((cases, *(f"{value:.1f}" for value in (*medians, total, processors))))
    return (
        f"volumes of {result['size']}^3, {counted(result['ranks'], 'rank')}, median of {result['rounds']} starts\n"
        f"{machine_line(result['machine'])}\n\n{markdown_table(rows)}"
    )


def main() -> int:
    """Measure, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the data sets and the runs; it is kept")
    parser.add_argument("--cases", type=int, nargs="+", default=[500, 20_000], help="numbers of cases")
    parser.add_argument("--size", type=int, default=16, help="voxels in a row of a volume (default: 16)")
    parser.add_argument("--ranks", type=int, default=1, help="processes of a run (default: 1)")
    parser.add_argument("--rounds", type=int, default=3, help="starts of each run (default: 3)")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    start_logging()

    def work() -> int:
        folder = arguments.folder.absolute()
        result = measure(folder, arguments.cases, arguments.size, arguments.ranks, arguments.rounds)
        publish(result, markdown(result), arguments.json)
        return 0

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
