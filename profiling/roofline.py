"""Roofline of the training step of a configuration: its measured time beside the limits of the device.

    python profiling/roofline.py --config configs/hippocampus_unet.yaml [--data DATASET] [--steps 10] [--json F]
        [--figure F] [--other TFLOPS GBS] [key.path=value ...]

The step is that of `fusionseg.train`. The program counts the operations of its convolutions, matrix products and
attention in forward and backward, and the bytes of every operator including the optimizer
(`fusionseg.performance.operator_costs`). In the same run it measures the device: square matrix products and a
convolution in the training's precision, a copy and a triad.

No operator can take less time than the larger of operations / rate and bytes / bandwidth. The sum of these times is the
*bound*. The column `of bound` is the bound divided by the measured time; a value above 100 % means that tensors were
still in a cache. MFU (model FLOPs utilisation) is the number of the model's operations divided by those that the device
could have done in the time of the step.

Phases are timed in ordinary steps. Operators are timed one by one in further steps. Their times add up to less than the
time of the phase, which also contains Python and the launches of kernels.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fusionseg.distributed.device_speed import DeviceRates, measure_rates, timed
from fusionseg.models.operator_costs import Call, Cost, total_cost
from fusionseg.performance.benchmarking import open_trainer, publish, step_arguments
from fusionseg.performance.machine import machine_info, machine_line
from fusionseg.performance.operator_costs import OperatorRecorder, PhaseClock, follow_phases
from fusionseg.training.trainer import Trainer
from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import run
from fusionseg.utils.files import whole_file, writable_file
from fusionseg.utils.logs import start_logging
from fusionseg.utils.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
WARM_UP, COUNTED = 2, 3
SHOWN = 12


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure the rates of the device, and cost and time of each phase and operator; the result has JSON values.

    Raises:
        UserError: an argument is invalid.
    """
    problems = []
    if arguments.steps < 1:
        problems.append(f"--steps: the number of steps is too small (expected 1 or more, got {arguments.steps})")
    problems += [
        f"--other: a rate is not positive (expected TFLOP/s and GB/s above 0, got {tflops:g} {gbs:g})"
        for tflops, gbs in arguments.other
        if not (tflops > 0 and gbs > 0)
    ]
    if problems:
        raise UserError(problems)
    trainer = open_trainer(arguments.config, arguments.overrides, arguments.data, folder)
    if trainer.config.train.compile is not False:
        raise UserError("train.compile: a compiled step has no operators to count; set train.compile=false")
    if trainer.config.train.cuda_graph:
        raise UserError("train.cuda_graph: a replayed step has no operators to count; set train.cuda_graph=false")
    device, precision = trainer.world.device, trainer.precision
    channels_last = trainer.micro_batches.channels_last
    rates = measure_rates(device, precision.dtype, channels_last=channels_last)
    step_s, phase_s = time_phases(trainer, arguments.steps)
    # Augmentation differs from sample to sample, so steps run different operators. Take the step of the median time.
    steps = sorted(
        (record_calls(trainer) for _ in range(COUNTED)), key=lambda calls: sum(call.seconds for call in calls)
    )
    counted = steps[COUNTED // 2]
    # Measure twice and keep the best, because other programs may have used the device the first time.
    rates = rates.best_of(measure_rates(device, precision.dtype, channels_last=channels_last))
    limits = rates.flops_per_s, rates.bytes_per_s
    phases = {
        name: row(total_cost((call for call in counted if call.phase == name), *limits), rates, seconds)
        for name, seconds in phase_s.items()
    }
    kinds = {}
    for kind in {call.kind for call in counted}:
        cost = total_cost((call for call in counted if call.kind == kind), *limits)
        kinds[kind] = row(cost, rates, cost.seconds)
    total = row(total_cost(counted, *limits), rates, step_s)
    model_flops = total["flops"]
    if trainer.config.train.checkpoint_activations:
        # Recomputed operations do not count as the model's. The backward pass has two for each one of forward.
        model_flops = 3 * phases["forward"]["flops"]
    others = []
    for tflops, gbs in arguments.other:
        bound = total_cost(counted, tflops * 1e12, gbs * 1e9)
        others.append({"tflops": tflops, "gbs": gbs, "bound_s": bound.bound_s, "limited_by": bound.limited_by})
    return {
        "config": arguments.config,
        "overrides": arguments.overrides,
        "machine": machine_info(device),
        "precision": precision.name,
        "steps": arguments.steps,
        "samples": trainer.config.train.global_batch,
        "rates": {**asdict(rates), "flops_per_s": rates.flops_per_s, "bytes_per_s": rates.bytes_per_s},
        "multiply_adds": model_flops // 2,
        "mfu": model_flops / step_s / rates.flops_per_s,
        "step": total,
        "phases": phases,
        "operators": dict(sorted(kinds.items(), key=lambda item: -item[1]["seconds"])),
        "other_devices": others,
    }


def time_phases(trainer: Trainer, steps: int) -> tuple[float, dict[str, float]]:
    """Median seconds of a step and of each of its phases, over ordinary steps."""
    device, totals = trainer.world.device, []
    by_phase: defaultdict[str, list[float]] = defaultdict(list)
    for index in range(WARM_UP + steps):
        clock = PhaseClock(device)
        with follow_phases(clock):
            seconds = timed(trainer.train_one_step, device)
        if index >= WARM_UP:
            totals.append(seconds)
            for name, phase_s in clock.seconds().items():
                by_phase[name].append(phase_s)
    return statistics.median(totals), {name: statistics.median(values) for name, values in by_phase.items()}


def record_calls(trainer: Trainer) -> list[Call]:
    """Run one step, and record the calls of all operators."""
    recorder = OperatorRecorder(trainer.world.device)

    @contextmanager
    def enter(name: str) -> Iterator[None]:
        recorder.phase = name
        yield
        recorder.phase = ""

    with follow_phases(enter), recorder:
        trainer.train_one_step()
    return recorder.calls()


def row(cost: Cost, rates: DeviceRates, seconds: float) -> dict[str, Any]:
    """Row of the result: a cost and the measured time."""
    return {
        **asdict(cost),
        "seconds": seconds,
        "intensity": cost.intensity,
        "limited_by": cost.limited_by,
        "share_of_bound": cost.bound_s / seconds,
        "utilisation": cost.flops / seconds / rates.flops_per_s,
    }


def markdown(result: dict[str, Any]) -> str:
    """Format the result as tables."""
    rates, step = result["rates"], result["step"]
    matmuls = ", ".join(f"{size}^2: {rate / 1e9:.0f}" for size, rate in rates["matmul_flops_per_s"].items())
    lines = [
        f"{result['config']} {result['overrides']} ({result['precision']}, {result['samples']} samples per step, median"
        f" of {result['steps']} steps)",
        machine_line(result["machine"]),
        "",
        f"Measured rates: {rates['flops_per_s'] / 1e9:.0f} GFLOP/s (matrices of {matmuls}; convolution:"
        f" {rates['convolution_flops_per_s'] / 1e9:.0f}), {rates['bytes_per_s'] / 1e9:.1f} GB/s (copy:"
        f" {rates['copy_bytes_per_s'] / 1e9:.1f}, triad: {rates['triad_bytes_per_s'] / 1e9:.1f}); ridge point"
        f" {rates['flops_per_s'] / rates['bytes_per_s']:.0f} FLOP per byte.",
        f"Step: {result['multiply_adds'] / 1e9:.1f} G multiply-adds, {step['bytes'] / 1e9:.2f} GB; bound"
        f" {step['bound_s'] * 1e3:.1f} ms, measured {step['seconds'] * 1e3:.1f} ms ({step['share_of_bound']:.0%} of"
        f" bound); MFU {result['mfu']:.1%}.",
    ]
    lines += [
        f"Bound on a device with {other['tflops']:g} TFLOP/s and {other['gbs']:g} GB/s:"
        f" {other['bound_s'] * 1e3:.2f} ms, limited mostly by {other['limited_by']}."
        for other in result["other_devices"]
    ]
    phases = table("phase", {**result["phases"], "step": step})
    shown = dict(list(result["operators"].items())[:SHOWN])
    return "\n".join([*lines, "", phases, "", table("operator", shown)])


def table(first: str, rows: dict[str, dict[str, Any]]) -> str:
    """Format rows by name as a table.

    Args:
        first: heading of the column of names.
        rows: results of `row` by name.
    """
    head = (first, "calls", "GFLOP", "GB", "FLOP / byte", "bound ms", "limited by", "ms", "of bound", "utilisation")
    cells = [
        (
            name,
            f"{cost['calls']}",
            f"{cost['flops'] / 1e9:.2f}",
            f"{cost['bytes'] / 1e9:.3f}",
            f"{cost['intensity']:.1f}",
            f"{cost['bound_s'] * 1e3:.2f}",
            cost["limited_by"],
            f"{cost['seconds'] * 1e3:.2f}",
            f"{cost['share_of_bound']:.0%}",
            f"{cost['utilisation']:.1%}",
        )
        for name, cost in rows.items()
    ]
    return markdown_table([head, *cells])


def draw_roofline(result: dict[str, Any], path: Path) -> None:
    """Draw the roofline of the device, with the phases and operators that have matrix products."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rates = result["rates"]
    ridge = rates["flops_per_s"] / rates["bytes_per_s"]
    points = [(name, cost, "o") for name, cost in result["operators"].items() if cost["flops"]]
    points += [(name, cost, "s") for name, cost in result["phases"].items() if cost["flops"]]
    points.append(("step", result["step"], "*"))
    intensities = [ridge, *(cost["intensity"] for _, cost, _ in points)]
    low, high = min(intensities) / 4, max(intensities) * 4
    figure, axis = plt.subplots(figsize=(7.5, 4.5))
    xs = [low, ridge, high]
    axis.loglog(xs, [min(x * rates["bytes_per_s"], rates["flops_per_s"]) / 1e9 for x in xs], color="black")
    for name, cost, marker in points:
        speed = cost["flops"] / cost["seconds"] / 1e9
        share = cost["seconds"] / result["step"]["seconds"]
        axis.scatter(cost["intensity"], speed, s=30 + 300 * share, marker=marker, alpha=0.7, label=name)
    axis.set_xlabel("arithmetic intensity (FLOP / byte)")
    axis.set_ylabel("GFLOP/s")
    machine = result["machine"]
    axis.set_title(f"{machine['gpu'] or machine['processor']}, {result['precision']}", fontsize=10)
    legend = axis.legend(fontsize=7, loc="lower right", title="area: share of the step time", title_fontsize=7)
    for handle in legend.legend_handles:
        handle.set_sizes([40])
    axis.grid(alpha=0.3, which="both")
    figure.tight_layout()
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def main() -> int:
    """Measure, print the result, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    step_arguments(parser, config=ROOT / "configs" / "hippocampus_unet.yaml", steps=10)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to this file")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the roofline (.png, .svg)")
    parser.add_argument(
        "--other",
        type=float,
        nargs=2,
        action="append",
        default=[],
        metavar=("TFLOPS", "GBS"),
        help="also print the bound on a device with these rates; may be given several times",
    )
    arguments = parser.parse_intermixed_args()
    start_logging()

    def work() -> int:
        for key, path in (("--json", arguments.json), ("--figure", arguments.figure)):
            if path is not None:
                writable_file(path, key)
        with tempfile.TemporaryDirectory() as folder:
            result = measure(arguments, Path(folder))
        publish(result, markdown(result), arguments.json)
        if arguments.figure is not None:
            draw_roofline(result, arguments.figure)
        return 0

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
