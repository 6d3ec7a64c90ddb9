"""Prediction of how a training scales from 1 to 4096 GPUs, and a check of the model on this machine.

    python profiling/scaling.py [--preset a100_hdr t4_10gbe ...] [--from-run RUN | --step-s S --gradient-mb G]
        [--global-batch B] [--json F] [--figure F]
    python profiling/scaling.py --measure [--processes 1 2 4] [--rounds 20]

A preset is a kind of cluster with values from data sheets, and the workload of `parse_fusion_od` on it. The other
options replace single values. --from-run takes the workload from the records of a run, on the device of that run.
Without --global-batch the global batch grows with the number of GPUs (weak scaling). docs/scaling.md lists the
assumptions of the model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from fusionseg.performance.benchmarking import publish
from fusionseg.performance.machine import machine_info
from fusionseg.performance.scaling_check import check_scaling
from fusionseg.performance.scaling_inputs import PRESETS, default_reliability, workload_of_run
from fusionseg.performance.scaling_model import Network, Reliability, Scale, Workload, possible_ranks, scale
from fusionseg.performance.scaling_report import check_table, draw_efficiency, scaling_table
from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import run
from fusionseg.utils.files import writable_file

COUNTS = [2**power for power in range(13)]
ABOVE_ZERO = (
    "step_s", "gradient_mb", "bucket_mb", "inside_gbs", "between_gbs", "node_mtbf_h", "checkpoint_s", "interval_s",
)  # fmt: skip
NOT_NEGATIVE = ("optimizer_s", "inside_us", "between_us", "restart_s")
AT_MOST = {"backward_share": 1.0, "overlap": 1.0, "spread": 2.0}  # upper limits; the lower limit is 0
AT_LEAST = {"micro_batch": 1, "accumulation_steps": 1, "global_batch": 1, "gpus_per_node": 1, "rounds": 2}


def check_options(options: argparse.Namespace) -> None:
    """Check all options.

    Raises:
        UserError: some options are invalid; the message lists all of them.
    """
    problems = []
    rules: list[tuple[Iterable[str], str, Callable[[float], bool]]] = [
        (ABOVE_ZERO, "above 0", lambda value: value > 0),
        (NOT_NEGATIVE, "0 or more", lambda value: value >= 0),
        *(((name,), f"0 to {most:g}", lambda value, most=most: 0 <= value <= most) for name, most in AT_MOST.items()),
        *(((name,), f"at least {n}", lambda value, n=n: value >= n) for name, n in AT_LEAST.items()),
    ]
    for names, expected, allows in rules:
        for name in names:
            value = getattr(options, name)
            infinite = value is not None and not isfinite(value) and name != "node_mtbf_h"  # inf: a node never fails
            if value is not None and (infinite or not allows(value)):
                problems.append(f"{flag(name)}: the value is out of range (expected {expected}, got {value:g})")
    for name in ("gpus", "processes"):
        if min(getattr(options, name)) < 1:
            problems.append(
                f"{flag(name)}: a number is out of range (expected at least 1, got {min(getattr(options, name))})"
            )
    batch, micro = options.global_batch, options.micro_batch
    if batch is not None and micro is not None and min(batch, micro) >= 1 and batch % micro:
        problems.append(f"--global-batch: {batch} is not a multiple of --micro-batch {micro}; change one of them")
    if batch is not None and options.accumulation_steps is not None:
        problems.append("--accumulation-steps: --global-batch already determines it; remove one of the two options")
    if options.from_run is not None and options.step_s is not None:
        problems.append("--step-s: --from-run already determines it; remove one of the two options")
    if options.measure and options.figure is not None:
        problems.append("--figure: --measure draws no figure; remove one of the two options")
    if problems:
        raise UserError(problems)


def flag(name: str) -> str:
    """Name of an option as written on the command line."""
    return f"--{name.replace('_', '-')}"


def inputs(options: argparse.Namespace, preset: str) -> tuple[Workload, Network, Reliability]:
    """Values of a preset, with those of the command line in place of its own."""
    defaults = PRESETS[preset]
    workload = workload_of_run(options.from_run) if options.from_run else defaults.workload
    changes: dict[str, Any] = {
        "micro_batch_s": options.step_s,
        "gradient_bytes": scaled(options.gradient_mb, 1e6),
        "optimizer_s": options.optimizer_s,
        "micro_batch": options.micro_batch,
        "backward_share": options.backward_share,
        "overlap": options.overlap,
        "bucket_bytes": scaled(options.bucket_mb, 2**20),
        "spread": options.spread,
        "distribution": options.distribution,
    }
    workload = replace(workload, **only_given(changes))
    reachable = defaults.reachable
    inside, between = (
        replace(link, **only_given({"bytes_per_s": scaled(gbs, 1e9), "latency_s": scaled(us, 1e-6)}))
        for link, gbs, us in (
            (reachable.inside, options.inside_gbs, options.inside_us),
            (reachable.between, options.between_gbs, options.between_us),
        )
    )
    network = replace(reachable, inside=inside, between=between, **only_given({"gpus_per_node": options.gpus_per_node}))
    reliability = replace(
        default_reliability(workload.gradient_bytes),
        **only_given(
            {
                "node_mtbf_s": scaled(options.node_mtbf_h, 3600),
                "restart_s": options.restart_s,
                "checkpoint_s": options.checkpoint_s,
                "interval_s": options.interval_s,
            }
        ),
    )
    return workload, network, reliability


def scaled(value: float | None, unit: float) -> float | None:
    """Multiply a value by a unit; None stays None."""
    return None if value is None else value * unit


def only_given(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out values that are None."""
    return {name: value for name, value in values.items() if value is not None}


def predict(options: argparse.Namespace, preset: str) -> dict[str, Any]:
    """Predict the training on one cluster; the result has JSON values.

    Raises:
        UserError: the global batch fits none of the numbers of GPUs.
    """
    workload, network, reliability = inputs(options, preset)
    counts = possible_ranks(options.gpus, workload.micro_batch, options.global_batch)
    if not counts:
        raise UserError(
            f"--global-batch: {options.global_batch} cannot be divided into micro-batches of {workload.micro_batch} on"
            f" any of {options.gpus} GPUs; raise it, or give other --gpus"
        )
    rows: list[Scale] = [
        scale(
            workload,
            network,
            reliability,
            ranks,
            accumulation_steps=options.accumulation_steps or 1,
            global_batch=options.global_batch,
            algorithm=options.algorithm,
        )
        for ranks in counts
    ]
    return {
        "preset": preset,
        "about": PRESETS[preset].about,
        "workload": asdict(workload),
        "network": asdict(network),
        "reliability": asdict(reliability),
        "algorithm": options.algorithm,
        "global_batch": options.global_batch,
        "rows": [{**asdict(row), "step": {**asdict(row.step), "total_s": row.step.total_s}} for row in rows],
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Compare the model with processes on this machine; the result has JSON values."""
    torch.set_num_threads(1)  # as in the processes, because machine_info reports it
    rows = []
    for processes in options.processes:
        checked = check_scaling(processes, options.rounds)
        steps = {"hidden_s": checked.hidden.total_s, "added_s": checked.added.total_s, "error": checked.error}
        rows.append({**asdict(checked), **steps})
    return {"machine": machine_info(torch.device("cpu")), "turns": options.rounds, "rows": rows}


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", nargs="+", choices=list(PRESETS), default=["a100_hdr"], help="kinds of clusters")
    parser.add_argument("--gpus", type=int, nargs="+", default=COUNTS, help="numbers of GPUs (default: 1, 2, ... 4096)")
    work = parser.add_argument_group("workload")
    work.add_argument("--from-run", type=Path, metavar="RUN", help="run folder of a training on one device")
    work.add_argument("--step-s", type=float, help="seconds of forward and backward of a micro-batch on one device")
    work.add_argument("--gradient-mb", type=float, help="size of all gradients in MB (10^6 bytes)")
    work.add_argument("--optimizer-s", type=float, help="seconds of the optimizer in a step")
    work.add_argument("--micro-batch", type=int, help="samples of a micro-batch")
    work.add_argument(
        "--accumulation-steps",
        "--accumulate",
        type=int,
        help="accumulation steps: micro-batches of a step on each GPU (default 1)",
    )
    work.add_argument("--global-batch", type=int, help="fixed number of samples of a step (strong scaling)")
    work.add_argument("--backward-share", type=float, help="share of the backward pass in --step-s (default 2/3)")
    work.add_argument("--overlap", type=float, help="speed of the backward pass during communication: 1 full, 0 none")
    work.add_argument(
        "--bucket-mb", type=float, help="bucket of DistributedDataParallel in MiB (2^20 bytes, default 25)"
    )
    work.add_argument("--spread", type=float, help="standard deviation of --step-s divided by its mean")
    work.add_argument("--distribution", choices=["normal", "lognormal"], help="distribution of --step-s")
    cluster = parser.add_argument_group("cluster")
    cluster.add_argument("--gpus-per-node", type=int, help="GPUs of a node")
    cluster.add_argument("--inside-gbs", type=float, help="reached GB/s of a GPU inside a node, in one direction")
    cluster.add_argument("--inside-us", type=float, help="latency inside a node in microseconds")
    cluster.add_argument(
        "--between-gbs", type=float, help="reached GB/s of all adapters of a node together, in one direction"
    )
    cluster.add_argument("--between-us", type=float, help="latency between nodes in microseconds")
    cluster.add_argument(
        "--algorithm",
        choices=["ring", "hierarchical", "tree", "best"],
        default="best",
        help="all-reduce (default: best)",
    )
    cluster.add_argument("--node-mtbf-h", type=float, help="mean hours between failures of one node; inf: never")
    cluster.add_argument("--restart-s", type=float, help="seconds from a failure to the next step")
    cluster.add_argument("--checkpoint-s", type=float, help="seconds for which saving stops the training")
    cluster.add_argument("--interval-s", type=float, help="seconds of training between checkpoints (default: the best)")
    measured = parser.add_argument_group("check")
    measured.add_argument("--measure", action="store_true", help="compare the model with processes on this machine")
    measured.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="numbers of processes")
    measured.add_argument(
        "--rounds", "--turns", dest="rounds", type=int, default=20, help="measured steps of each kind (default 20)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to this file")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the efficiency (.png, .svg)")
    return parser


def main() -> int:
    """Predict or measure, print the result, and return the exit status."""
    options = build_parser().parse_args()

    def work() -> int:
        check_options(options)
        for key, path in (("--json", options.json), ("--figure", options.figure)):
            if path is not None:
                writable_file(path, key)
        if options.measure:
            result = measure(options)
            publish(result, check_table(result), options.json)
            return 0
        results = [predict(options, preset) for preset in options.preset]
        publish({"clusters": results}, "\n\n".join(map(scaling_table, results)), options.json)
        if options.figure is not None:
            draw_efficiency(results, options.figure)
        return 0

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
