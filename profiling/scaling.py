"""How a training scales from 1 to 4096 GPUs, by a model; and the model against real processes on this machine.

    python profiling/scaling.py [--preset a100_hdr t4_10gbe ...] [--from-run RUN | --step-s S --gradient-mb G]
        [--global-batch B] [--json F] [--figure F]
    python profiling/scaling.py --measure [--processes 1 2 4] [--turns 20]

A preset is a kind of cluster by its data sheets, with `parse_fusion_od` on it; the other options change single values,
--from-run takes the workload from a run's records, on whatever device that was. Without --global-batch the batch grows
with the GPUs (weak scaling). docs/scaling.md says what the model assumes.
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
AT_MOST = {"backward_share": 1.0, "overlap": 1.0, "spread": 2.0}  # and not negative
NUMBERS = {"micro_batch": 1, "accumulate": 1, "global_batch": 1, "gpus_per_node": 1, "turns": 2}  # at least


def refuse_impossible(options: argparse.Namespace) -> None:
    """Look at all values.

    Raises:
        UserError: with every one that cannot be.
    """
    problems = []
    rules: list[tuple[Iterable[str], str, Callable[[float], bool]]] = [
        (ABOVE_ZERO, "above 0", lambda value: value > 0),
        (NOT_NEGATIVE, "0 or more", lambda value: value >= 0),
        *(((name,), f"0 to {most:g}", lambda value, most=most: 0 <= value <= most) for name, most in AT_MOST.items()),
        *(((name,), f"at least {n}", lambda value, n=n: value >= n) for name, n in NUMBERS.items()),
    ]
    for names, wanted, allows in rules:
        for name in names:
            value = getattr(options, name)
            endless = value is not None and not isfinite(value) and name != "node_mtbf_h"  # a node may never fail
            if value is not None and (endless or not allows(value)):
                problems.append(f"{flag(name)}: is {value:g}: give {wanted}")
    for name in ("gpus", "processes"):
        if min(getattr(options, name)) < 1:
            problems.append(f"{flag(name)}: are {getattr(options, name)}: give numbers of at least 1")
    batch, micro = options.global_batch, options.micro_batch
    if batch is not None and micro is not None and min(batch, micro) >= 1 and batch % micro:
        problems.append(f"--global-batch: {batch} is not a multiple of --micro-batch {micro}: change one of them")
    if batch is not None and options.accumulate is not None:
        problems.append("--accumulate: follows from --global-batch: leave one of them out")
    if options.from_run is not None and options.step_s is not None:
        problems.append("--step-s: is what --from-run reads: leave one of them out")
    if options.measure and options.figure is not None:
        problems.append("--figure: --measure draws none: leave it out")
    if problems:
        raise UserError(problems)


def flag(name: str) -> str:
    """An option as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def inputs(options: argparse.Namespace, preset: str) -> tuple[Workload, Network, Reliability]:
    """What the preset says, with what the command line changes."""
    given = PRESETS[preset]
    workload = workload_of_run(options.from_run) if options.from_run else given.workload
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
    reachable = given.reachable
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
    return None if value is None else value * unit


def only_given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def predict(options: argparse.Namespace, preset: str) -> dict[str, Any]:
    """Inputs and rows of one cluster, as a plain dictionary."""
    workload, network, reliability = inputs(options, preset)
    counts = possible_ranks(options.gpus, workload.micro_batch, options.global_batch)
    if not counts:
        raise UserError(
            f"--global-batch: {options.global_batch} in micro-batches of {workload.micro_batch} cannot be dealt over"
            f" any of {options.gpus} GPUs: raise it, or give other --gpus"
        )
    rows: list[Scale] = [
        scale(
            workload,
            network,
            reliability,
            ranks,
            accumulation_steps=options.accumulate or 1,
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
    """The model against processes of this machine, as a plain dictionary."""
    torch.set_num_threads(1)  # as the processes have: it is in the machine's description
    rows = []
    for processes in options.processes:
        found = check_scaling(processes, options.turns)
        steps = {"hidden_s": found.hidden.total_s, "added_s": found.added.total_s, "error": found.error}
        rows.append({**asdict(found), **steps})
    return {"machine": machine_info(torch.device("cpu")), "turns": options.turns, "rows": rows}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", nargs="+", choices=list(PRESETS), default=["a100_hdr"], help="kinds of clusters")
    parser.add_argument("--gpus", type=int, nargs="+", default=COUNTS, help="numbers of GPUs (default: 1, 2, ... 4096)")
    work = parser.add_argument_group("workload")
    work.add_argument("--from-run", type=Path, metavar="RUN", help="a run folder, of a training on one device")
    work.add_argument("--step-s", type=float, help="seconds of a micro-batch, forward and backward, on one device")
    work.add_argument("--gradient-mb", type=float, help="of all gradients, 1e6 bytes")
    work.add_argument("--optimizer-s", type=float, help="seconds of the optimizer")
    work.add_argument("--micro-batch", type=int, help="samples")
    work.add_argument("--accumulate", type=int, help="micro-batches of a step on each GPU (default 1)")
    work.add_argument("--global-batch", type=int, help="samples of a step, fixed (strong scaling)")
    work.add_argument("--backward-share", type=float, help="of --step-s (default 2/3)")
    work.add_argument("--overlap", type=float, help="speed of backward during communication: 1 full, 0 none")
    work.add_argument("--bucket-mb", type=float, help="of DistributedDataParallel, 2^20 bytes (default 25)")
    work.add_argument("--spread", type=float, help="standard deviation of --step-s over its mean")
    work.add_argument("--distribution", choices=["normal", "lognormal"], help="of --step-s")
    cluster = parser.add_argument_group("cluster")
    cluster.add_argument("--gpus-per-node", type=int)
    cluster.add_argument("--inside-gbs", type=float, help="GB/s from GPU to GPU in a node, each, one way, as reached")
    cluster.add_argument("--inside-us", type=float, help="latency of that")
    cluster.add_argument("--between-gbs", type=float, help="GB/s of a node's adapters together, one way, as reached")
    cluster.add_argument("--between-us", type=float, help="latency of that")
    cluster.add_argument("--algorithm", choices=["ring", "hierarchical", "tree", "best"], default="best")
    cluster.add_argument("--node-mtbf-h", type=float, help="hours between failures of a node")
    cluster.add_argument("--restart-s", type=float, help="seconds from a failure to the next step")
    cluster.add_argument("--checkpoint-s", type=float, help="seconds that a save stops the training")
    cluster.add_argument("--interval-s", type=float, help="training between checkpoints (default: the best)")
    measured = parser.add_argument_group("check")
    measured.add_argument("--measure", action="store_true", help="the model against processes on this machine")
    measured.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    measured.add_argument("--turns", type=int, default=20, help="measured steps of each kind")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here too")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the efficiency (.png, .svg)")
    return parser


def main() -> int:
    """Predict, or measure, and print; the exit status."""
    options = arguments().parse_args()

    def work() -> int:
        refuse_impossible(options)
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
