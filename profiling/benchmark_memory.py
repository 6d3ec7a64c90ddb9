"""Benchmark of the estimated memory of a training step: predicted and measured peak of networks on the CPU.

    python profiling/benchmark_memory.py --json memory.json [--networks unet swin_unetr] [--patch 64 64 32]

For each network, patch and precision, with and without activation checkpointing where the network can do it, the
program prints the estimate (`fusionseg.training.memory`, as `fusionseg train --dry-run` shows it) and the highest
number of bytes that torch's allocator has given out in the real step (`fusionseg.performance.step_memory`).
Micro-batch 1, one channel, two classes. The same command again continues: rows that the JSON file has are not measured
again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from fusionseg.config import validate
from fusionseg.models.network_list import default_configs
from fusionseg.performance.benchmarking import publish
from fusionseg.performance.machine import machine_info, machine_line
from fusionseg.performance.step_memory import measured_step_bytes
from fusionseg.training.memory.estimate import estimate_memory
from fusionseg.training.precision import Precision
from fusionseg.training.tasks.choice import build_task
from fusionseg.utils.exit_status import run
from fusionseg.utils.tables import markdown_table

PATCHES = ([64, 64, 32], [64, 64, 64], [96, 64, 64])
_KEYS = ("network", "patch", "precision", "checkpoint_activations")


def row_of(network: str, patch: list[int], precision: str, *, recompute: bool) -> dict[str, Any]:
    """Predict and measure the peak of a step."""
    train = {"global_batch": 1, "micro_batch": 1, "checkpoint_activations": recompute}
    config = validate({"model": {"name": network}, "data": {"patch": patch}, "train": train})
    predicted = estimate_memory(build_task(config), config, 1, 2, precision=Precision(precision, "", "cpu")).tensors
    measured = measured_step_bytes(config, precision, in_channels=1, out_channels=2)
    values = (network, patch, precision, recompute)
    return {**dict(zip(_KEYS, values, strict=True)), "predicted": predicted, "measured": measured}


def markdown(result: dict[str, Any]) -> str:
    """Return the table: a line for each network, precision and checkpointing, and for each patch the measured GB and
    the ratio of the predicted ones to them."""
    patches = sorted({tuple(row["patch"]) for row in result["rows"]})
    lines: dict[tuple[str, str, str], dict[tuple[int, ...], str]] = {}
    for row in result["rows"]:
        key = (f"`{row['network']}`", row["precision"], "yes" if row["checkpoint_activations"] else "")
        cell = f"{row['measured'] / 1e9:.3f} ({row['predicted'] / row['measured']:.2f})"
        lines.setdefault(key, {})[tuple(row["patch"])] = cell
    head = ("network", "precision", "checkpointing", *(" x ".join(map(str, patch)) for patch in patches))
    rows = [head, *((*key, *(cells.get(patch, "") for patch in patches)) for key, cells in lines.items())]
    return f"{machine_line(result['machine'])}\nmeasured GB (predicted / measured)\n\n{markdown_table(rows)}"


def main() -> int:
    """Measure, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=(), help="names of networks (default: all built-in ones)")
    parser.add_argument("--patch", type=int, nargs=3, action="append", help="size in voxels; may be repeated")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=("fp32", "bf16"))
    parser.add_argument("--json", type=Path, help="also write the result to this file; its rows are kept")
    arguments = parser.parse_args()

    def work() -> int:
        known = json.loads(arguments.json.read_text())["rows"] if arguments.json and arguments.json.exists() else []
        result = {"machine": machine_info(torch.device("cpu")), "rows": known}
        for patch in arguments.patch or PATCHES:
            for section in default_configs(arguments.networks):
                if section.patch_problem(tuple(patch)) is not None:
                    continue
                for precision in arguments.precisions:
                    for recompute in (False, True) if section.can_checkpoint else (False,):
                        values = (section.name, list(patch), precision, recompute)
                        if any(tuple(row[key] for key in _KEYS) == values for row in known):
                            continue
                        known.append(row_of(section.name, list(patch), precision, recompute=recompute))
                        publish(result, markdown({**result, "rows": known[-1:]}), arguments.json)
        publish(result, markdown(result), arguments.json)
        return 0

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
