"""Size, time and Dice of exported ONNX models of one run, side by side.

    fusionseg export RUN --cases 20 -o fp32; fusionseg export RUN --cases 20 --weights int8 -o int8
    python profiling/benchmark_onnx.py fp32 int8 [--rounds 10] [--threads 1]

The first model is the reference. All models compute the same random windows, alternately, so that other load on the
machine affects all of them alike. The time is CPU time of this process, the shortest of the rounds. The Dice is that of
`parity.json` of each model.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from fusionseg.export.contract import CONTRACT
from fusionseg.export.parity import PARITY
from fusionseg.export.small_weights import program_megabytes
from fusionseg.export.standalone.run_onnx import Network
from fusionseg.performance.machine import machine_info, machine_line
from fusionseg.runs.json_files import read_object
from fusionseg.utils.tables import markdown_table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("models", nargs="+", type=Path, help="folders of fusionseg export --format onnx")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    networks = [Network(folder, arguments.threads) for folder in arguments.models]
    window = networks[0].members[0]["window"]
    shape = (window["batch"], len(networks[0].members[0]["input"]["channels"]), *window["patch"])
    windows = np.random.default_rng(0).standard_normal(shape, np.float32)
    seconds = [min(times) for times in zip(*(_round(networks, windows) for _ in range(arguments.rounds)), strict=True)]
    print(machine_line(machine_info(torch.device("cpu"))))
    print(f"windows {' x '.join(map(str, shape))}, threads: {arguments.threads}\n")
    rows = [["weights", "MB", "CPU ms", "time", "cases", "voxels that differ", "difference of the Dice by class"]]
    for folder, spent in zip(arguments.models, seconds, strict=True):
        parity = read_object(folder / PARITY)
        classes = parity["dice_by_class"].items()
        differences = ", ".join(f"{name} {values['difference']:+.4f}" for name, values in classes)
        share = "-" if parity["share"] is None else f"{parity['share']:.1e}"
        sizes = [f"{program_megabytes(folder):.1f}", f"{1e3 * spent:.0f}", f"{spent / seconds[0]:.2f}"]
        name = str(read_object(folder / CONTRACT).get("weights"))
        rows.append([name, *sizes, str(len(parity["cases"])), share, differences])
    print(markdown_table(rows))


def _round(networks: list[Network], windows: np.ndarray) -> list[float]:
    """CPU seconds of each model for the windows, networks of an ensemble together."""
    spent = []
    for network in networks:
        start = time.process_time()
        for session in network.sessions:
            session.run(None, {session.get_inputs()[0].name: windows})
        spent.append(time.process_time() - start)
    return spent


if __name__ == "__main__":
    main()
