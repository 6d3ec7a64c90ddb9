"""What the training step of a configuration is against what the device can do.

    python profiling/roofline.py --config configs/hippocampus_unet.yaml [--data DATASET] [--steps 10] [--json F]
        [--figure F] [--other TFLOPS GBS] [key.path=value ...]

The step is the engine's own. Its operators are counted: the operations of convolutions, matrix products and attention
in forward and backward, and the bytes of every operator, optimizer included
(`fusionseg.performance.operator_costs`).
The device is measured in the same run: square matrix products and a convolution in the training's precision, a copy
and a triad. No operator can be faster than the larger of operations / rate and bytes / bandwidth; the sum of these
is the *bound*, and the *share* is what the bound is of the measured time. MFU is the model's operations over what the
device could have done in the step's time. A share above 1 means that tensors were still in a cache.

Phases are timed in plain steps; operators in further steps in which each is timed alone, so their times add up to
less than a phase's, which has Python and the launching of kernels too.
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

from fusionseg.inference.evaluation.table import markdown_table
from fusionseg.performance.benchmarking import open_trainer, publish, step_arguments
from fusionseg.performance.device_speed import DeviceRates, measure_rates, timed
from fusionseg.performance.machine import machine_info, machine_line
from fusionseg.performance.operator_costs import Call, Cost, OperatorRecorder, PhaseClock, follow_phases, total_cost
from fusionseg.training.trainer import Trainer
from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import run
from fusionseg.utils.files import whole_file, writable_file
from fusionseg.utils.logs import start_logging

ROOT = Path(__file__).resolve().parent.parent
WARM_UP, COUNTED = 2, 3
SHOWN = 12


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Rates of the device, cost and time of each phase and of each operator, as a plain dictionary.

    Raises:
        UserError: the arguments cannot be taken.
    """
    problems = []
    if arguments.steps < 1:
        problems.append(f"--steps: is {arguments.steps}: give at least 1")
    problems += [
        f"--other: is {tflops:g} {gbs:g}: give TFLOP/s and GB/s above 0"
        for tflops, gbs in arguments.other
        if not (tflops > 0 and gbs > 0)
    ]
    if problems:
        raise UserError(problems)
    trainer = open_trainer(arguments.config, arguments.overrides, arguments.data, folder)
    if trainer.config.train.compile:
        raise UserError("train.compile: a compiled step has no operators to count: set it to false")
    device, precision = trainer.world.device, trainer.precision
    layout = trainer.config.train.channels_last
    rates = measure_rates(device, precision.dtype, channels_last=layout)
    step_s, phase_s = time_phases(trainer, arguments.steps)
    # Which operators run depends on the samples (augmentation): one whole step, that of the median time.
    calls = sorted((count(trainer) for _ in range(COUNTED)), key=lambda own: sum(call.seconds for call in own))
    counted = calls[COUNTED // 2]
    rates = rates.best_of(measure_rates(device, precision.dtype, channels_last=layout))  # something else may have run
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
        # What is computed again is no operation of the model; backward takes two for each one of forward.
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
    """Medians over plain steps: seconds of a step, and of each of its phases."""
    device, totals = trainer.world.device, []
    by_phase: defaultdict[str, list[float]] = defaultdict(list)
    for number in range(WARM_UP + steps):
        clock = PhaseClock(device)
        with follow_phases(clock):
            seconds = timed(trainer.advance, device)
        if number >= WARM_UP:
            totals.append(seconds)
            for name, own in clock.seconds().items():
                by_phase[name].append(own)
    return statistics.median(totals), {name: statistics.median(values) for name, values in by_phase.items()}


def count(trainer: Trainer) -> list[Call]:
    """The operators of one step."""
    watch = OperatorRecorder(trainer.world.device)

    @contextmanager
    def enter(name: str) -> Iterator[None]:
        watch.phase = name
        yield
        watch.phase = ""

    with follow_phases(enter), watch:
        trainer.advance()
    return watch.calls()


def row(cost: Cost, rates: DeviceRates, seconds: float) -> dict[str, Any]:
    """A cost beside the time that it took."""
    return {
        **asdict(cost),
        "seconds": seconds,
        "intensity": cost.intensity,
        "limited_by": cost.limited_by,
        "share_of_bound": cost.bound_s / seconds,
        "utilisation": cost.flops / seconds / rates.flops_per_s,
    }


def markdown(result: dict[str, Any]) -> str:
    """The result as tables."""
    rates, step = result["rates"], result["step"]
    matmuls = ", ".join(f"{size}^2: {rate / 1e9:.0f}" for size, rate in rates["matmul_flops_per_s"].items())
    lines = [
        f"{result['config']} {result['overrides']} ({result['precision']}, {result['samples']} samples a step, median"
        f" of {result['steps']} steps)",
        machine_line(result["machine"]),
        "",
        f"Measured rates: {rates['flops_per_s'] / 1e9:.0f} GFLOP/s (matrices of {matmuls}; convolution:"
        f" {rates['convolution_flops_per_s'] / 1e9:.0f}), {rates['bytes_per_s'] / 1e9:.1f} GB/s (copy:"
        f" {rates['copy_bytes_per_s'] / 1e9:.1f}, triad: {rates['triad_bytes_per_s'] / 1e9:.1f}); they meet at"
        f" {rates['flops_per_s'] / rates['bytes_per_s']:.0f} FLOP a byte.",
        f"The step: {result['multiply_adds'] / 1e9:.1f} G multiply-adds, {step['bytes'] / 1e9:.2f} GB; at least"
        f" {step['bound_s'] * 1e3:.1f} ms, took {step['seconds'] * 1e3:.1f} ms: {step['share_of_bound']:.0%} of the"
        f" bound, MFU {result['mfu']:.1%}.",
    ]
    lines += [
        f"On a device with {other['tflops']:g} TFLOP/s and {other['gbs']:g} GB/s the same operators take at least"
        f" {other['bound_s'] * 1e3:.2f} ms, mostly for their {other['limited_by']}."
        for other in result["other_devices"]
    ]
    phases = table("phase", {**result["phases"], "step": step})
    shown = dict(list(result["operators"].items())[:SHOWN])
    return "\n".join([*lines, "", phases, "", table("operator", shown)])


def table(first: str, rows: dict[str, dict[str, Any]]) -> str:
    """One row for each entry."""
    head = (first, "calls", "GFLOP", "GB", "FLOP / byte", "bound ms", "limited by", "ms", "of bound", "utilisation")
    cells = [
        (
            name,
            f"{entry['calls']}",
            f"{entry['flops'] / 1e9:.2f}",
            f"{entry['bytes'] / 1e9:.3f}",
            f"{entry['intensity']:.1f}",
            f"{entry['bound_s'] * 1e3:.2f}",
            entry["limited_by"],
            f"{entry['seconds'] * 1e3:.2f}",
            f"{entry['share_of_bound']:.0%}",
            f"{entry['utilisation']:.1%}",
        )
        for name, entry in rows.items()
    ]
    return markdown_table([head, *cells])


def draw(result: dict[str, Any], path: Path) -> None:
    """The roofline of the device, and on it the phases and operators that multiply matrices."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rates = result["rates"]
    ridge = rates["flops_per_s"] / rates["bytes_per_s"]
    points = [(name, entry, "o") for name, entry in result["operators"].items() if entry["flops"]]
    points += [(name, entry, "s") for name, entry in result["phases"].items() if entry["flops"]]
    points.append(("step", result["step"], "*"))
    places = [ridge, *(entry["intensity"] for _, entry, _ in points)]
    low, high = min(places) / 4, max(places) * 4
    figure, axis = plt.subplots(figsize=(7.5, 4.5))
    xs = [low, ridge, high]
    axis.loglog(xs, [min(x * rates["bytes_per_s"], rates["flops_per_s"]) / 1e9 for x in xs], color="black")
    for name, entry, marker in points:
        speed = entry["flops"] / entry["seconds"] / 1e9
        share = entry["seconds"] / result["step"]["seconds"]
        axis.scatter(entry["intensity"], speed, s=30 + 300 * share, marker=marker, alpha=0.7, label=name)
    axis.set_xlabel("operations for each byte (FLOP / byte)")
    axis.set_ylabel("GFLOP/s")
    machine = result["machine"]
    axis.set_title(f"{machine['gpu'] or machine['processor']}, {result['precision']}", fontsize=10)
    legend = axis.legend(fontsize=7, loc="lower right", title="areas: share of the step's time", title_fontsize=7)
    for handle in legend.legend_handles:
        handle.set_sizes([40])
    axis.grid(alpha=0.3, which="both")
    figure.tight_layout()
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def main() -> int:
    """Measure and print; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    step_arguments(parser, config=ROOT / "configs" / "hippocampus_unet.yaml", steps=10)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here too")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the roofline (.png, .svg)")
    parser.add_argument(
        "--other",
        type=float,
        nargs=2,
        action="append",
        default=[],
        metavar=("TFLOPS", "GBS"),
        help="the bound on a device with these rates too; may be given several times",
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
            draw(result, arguments.figure)
        return 0

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
