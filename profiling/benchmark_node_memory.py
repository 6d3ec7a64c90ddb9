"""Benchmark of the memory of a node for data: four ranks that share a cache on the host, beside one rank.

    python profiling/benchmark_node_memory.py --folder FOLDER [--cases 100] [--size 128] [--ranks 1 4] [--json FILE]

For each number of ranks the program starts `fusionseg train` on a data set of synthetic cubes and on a tiny one, and
adds up the proportional set size (PSS) of all processes after the first step: a page that several processes share
counts once. The difference of the two runs is the memory for data; imports, network and process group cancel out.
FOLDER keeps the prepared data sets for the next call.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from many_cases import ManyCases

from fusionseg.performance.benchmarking import publish
from fusionseg.performance.machine import machine_info, machine_line
from fusionseg.utils.exit_status import run
from fusionseg.utils.logs import start_logging
from fusionseg.utils.tables import markdown_table

TINY = (10, 16)
"""Cases, and voxels in a row, of the data set without weight."""
SAMPLES, BETWEEN_S = 3, 2.0


def family(process: int) -> list[int]:
    """The ids of a process and of all processes below it."""
    found = [process]
    for number in found:
        try:
            threads = list(Path(f"/proc/{number}/task").iterdir())
            found += [int(child) for thread in threads for child in (thread / "children").read_text().split()]
        except FileNotFoundError:  # it has ended meanwhile
            continue
    return found


def proportional_bytes(process: int) -> int:
    """Memory of a process; a page that several processes share counts in part."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def node_bytes(cases: ManyCases, ranks: int) -> float:
    """Memory of all processes of a training after its first step, the median of a few samples."""
    found = []
    with cases.training(ranks) as process:
        for _ in range(SAMPLES):
            time.sleep(BETWEEN_S)
            found.append(sum(map(proportional_bytes, family(process))))
    return statistics.median(found)


def measure(folder: Path, cases: int, size: int, counts: list[int]) -> dict[str, Any]:
    """Measure the memory; the result has JSON values."""
    sets = {"data": ManyCases(folder, cases, size), "tiny": ManyCases(folder, *TINY)}
    for one in sets.values():
        one.prepare()
    nodes = {str(ranks): {name: node_bytes(one, ranks) for name, one in sets.items()} for ranks in counts}
    return {"machine": machine_info(torch.device("cpu")), "cases": cases, "size": size, "node_bytes": nodes}


def markdown(result: dict[str, Any]) -> str:
    """Return the table, with the growth over the first number of ranks."""
    rows = [("ranks", "all processes MB", "with a tiny data set MB", "for data MB", "growth")]
    first = None
    for ranks, node in result["node_bytes"].items():
        data = node["data"] - node["tiny"]
        first = first or data
        sizes = (f"{value / 1e6:.0f}" for value in (node["data"], node["tiny"], data))
        rows.append((ranks, *sizes, f"{data / first - 1:+.1%}"))
    return (
        f"{result['cases']} volumes of {result['size']}^3\n{machine_line(result['machine'])}\n\n{markdown_table(rows)}"
    )


def main() -> int:
    """Measure, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the data sets and the runs; it is kept")
    parser.add_argument("--cases", type=int, default=100, help="number of cases (default: 100)")
    parser.add_argument("--size", type=int, default=128, help="voxels in a row of a volume (default: 128)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4], help="numbers of ranks (default: 1 4)")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    start_logging()

    def work() -> int:
        result = measure(arguments.folder.absolute(), arguments.cases, arguments.size, arguments.ranks)
        publish(result, markdown(result), arguments.json)
        return 0

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
