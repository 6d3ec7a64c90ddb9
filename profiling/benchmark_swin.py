"""Benchmark of the Swin networks against MONAI's Swin UNETR: time and peak memory of a training step.

    python profiling/benchmark_swin.py [--networks swin_unetr swin_fusion_od] [--precision fp32 bf16] [--compile off on]

A step is forward, Dice and cross-entropy loss, and backward on one batch that stays on the device, without optimizer.
The networks are timed alternately, so that other load on the machine affects all of them alike. The time ratio is the
median over the rounds of the ratio to MONAI's network.

The peak memory is that of one step in a process of its own, minus the memory before the step (weights and batch). It
includes the gradients. On a GPU it is the memory of torch's allocator, on a CPU the resident set.

--implementation fused reference measures each network with its hand-written backward passes and with their reference
(`model.implementation`), in rows of their own: this comparison decides what `auto` takes on a device.

On a CPU that other programs use, give --threads 1 --clock cpu: it counts the CPU time of one thread without waiting.
`monai` is MONAI's network, `monai_v2` the same with use_v2; all other names are those of `fusionseg models`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fusionseg.losses.named.dice import LossConfig
from fusionseg.losses.segmentation import build_loss
from fusionseg.models import build_model
from fusionseg.models.implementation import set_implementation_
from fusionseg.models.networks.swin import SwinConfig
from fusionseg.performance.benchmarking import cudnn_argument, publish
from fusionseg.performance.machine import machine_info, machine_line
from fusionseg.utils.exit_status import run
from fusionseg.utils.machine import process_memory_bytes
from fusionseg.utils.tables import markdown_table

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BASE = "monai"
MONAIS = (BASE, "monai_v2")


def measured_names(options: argparse.Namespace) -> list[str]:
    """Names of the rows: MONAI's network first, then each network with each implementation ("swin_unetr reference")."""
    theirs = [name for name in options.networks if name in MONAIS]
    ours = [name for name in options.networks if name not in MONAIS]
    kinds = {"fused": "", "reference": " reference"}
    return [BASE, *theirs, *(f"{name}{kinds[kind]}" for name in ours for kind in options.implementation)]


def build(name: str, feature_size: int, *, checkpoint: bool) -> nn.Module:
    """Build a network for one input channel and two classes.

    Args:
        name: monai, monai_v2, or a Swin network of `fusionseg models`; the latter may be followed by " reference".
        feature_size: channels of the first stage.
        checkpoint: recompute activations in the backward pass.
    """
    if name in MONAIS:
        from monai.networks.nets.swin_unetr import SwinUNETR

        return SwinUNETR(
            in_channels=1, out_channels=2, feature_size=feature_size, use_checkpoint=checkpoint, use_v2=name != BASE
        )
    name, _, implementation = name.partition(" ")
    config = SwinConfig.model_validate({"name": name, "feature_size": feature_size})
    model = build_model(config, in_channels=1, out_channels=2, checkpoint_activations=checkpoint)
    set_implementation_(model, "reference" if implementation else "fused", torch.get_default_device().type)
    return model


def training_step(name: str, options: argparse.Namespace, precision: str, compiled: bool) -> Callable[[], None]:
    """Make the step of a network with new weights on a batch that stays on the device."""
    device = torch.device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = build(name, options.feature_size, checkpoint=options.checkpoint).to(device).train()
    if compiled:
        model.compile(fullgraph=name not in MONAIS)
    image = torch.randn(options.batch, 1, *[options.patch] * 3, device=device)
    label = torch.randint(2, image.shape, device=device)
    loss_fn = build_loss(LossConfig())

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with autocast():
            logits = model(image)
        loss_fn(logits.float(), label).backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def measure_time(options: argparse.Namespace, precision: str, compiled: bool) -> dict[str, list[float]]:
    """Measure the steps of all networks: seconds by network, one value for each round."""
    names = measured_names(options)
    steps = {name: training_step(name, options, precision, compiled) for name in names}
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in names}
    for index in range(options.warmup + options.rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            start = clock()
            steps[name]()
            if index >= options.warmup:
                times[name].append(clock() - start)
    return times


def measure_memory(name: str, options: argparse.Namespace, precision: str, compiled: bool) -> float:
    """Measure the peak memory of a step in a process of its own, in bytes."""
    settings = {**vars(options), "json": None}
    command = [sys.executable, __file__, "--memory-request", json.dumps([name, settings, precision, compiled])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


def peak_memory(request: str) -> float:
    """Peak memory of a step beyond the memory before it, in bytes.

    Args:
        request: JSON list of network, options, precision and compile, from `measure_memory`.
    """
    name, settings, precision, compiled = json.loads(request)
    options = argparse.Namespace(**settings)
    torch.backends.cudnn.benchmark = options.cudnn_benchmark
    step = training_step(name, options, precision, compiled)
    if options.device == "cuda":
        before = float(torch.cuda.memory_allocated())
        step()  # the first step compiles and selects kernels, which takes memory too
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    # Reset the peak that the kernel records, because a process inherits that of its parent.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = process_memory_bytes("VmRSS")
    step()
    return process_memory_bytes("VmHWM") - before


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure times, peaks and ratios of all networks; the result has JSON values."""
    rows = []
    for precision in options.precision:
        for compiled in [word == "on" for word in options.compile]:
            times = measure_time(options, precision, compiled) if options.rounds else {}
            peaks: dict[str, float] = {}
            for name in [] if options.no_memory else measured_names(options):
                peaks[name] = measure_memory(name, options, precision, compiled)
            for name in measured_names(options):
                row: dict[str, Any] = {"network": name, "precision": precision, "compile": compiled}
                if times:
                    ratios = [ours / theirs for ours, theirs in zip(times[name], times[BASE], strict=True)]
                    row |= {"seconds": statistics.median(times[name]), "time_ratio": statistics.median(ratios)}
                    row |= {"time_ratios": ratios}
                if peaks:
                    row |= {"peak_bytes": peaks[name], "memory_ratio": peaks[name] / peaks[BASE]}
                rows.append(row)
    return {
        "machine": machine_info(torch.device(options.device)),
        "feature_size": options.feature_size,
        "patch": options.patch,
        "batch": options.batch,
        "checkpoint": options.checkpoint,
        "turns": options.rounds,
        "clock": options.clock,
        "rows": rows,
    }


def markdown(result: dict[str, Any]) -> str:
    """Format the result as a table."""
    head = (
        f"feature size {result['feature_size']}, patch {result['patch']}^3, batch {result['batch']}, activation"
        f" checkpointing {'on' if result['checkpoint'] else 'off'}, {result['turns']} rounds,"
        f" {result['clock']} clock\n{machine_line(result['machine'])}"
    )
    rows = [["network", "precision", "compile", "s / step", "time / MONAI", "peak GB", "memory / MONAI"]]
    for row in result["rows"]:
        cells = [row["network"], row["precision"], "on" if row["compile"] else "off"]
        cells += [f"{row['seconds']:.3f}", f"{row['time_ratio']:.3f}"] if "seconds" in row else ["", ""]
        if "peak_bytes" in row:
            cells += [f"{row['peak_bytes'] / 1e9:.2f}", f"{row['memory_ratio']:.3f}"]
        else:
            cells += ["", ""]
        rows.append(cells)
    return f"{head}\n\n{markdown_table(rows)}"


def main() -> int:
    """Measure, print the result, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ["swin_unetr", "swin_fusion_od", "swin_fusion_2_v2"]
    parser.add_argument("--networks", nargs="+", default=default, metavar="NAME", help=f"default: {' '.join(default)}")
    parser.add_argument("--precision", nargs="+", choices=list(DTYPES), default=["fp32", "bf16"])
    parser.add_argument(
        "--implementation",
        nargs="+",
        choices=["fused", "reference"],
        default=["fused"],
        help="backward passes of the networks (default: fused)",
    )
    parser.add_argument("--compile", nargs="+", choices=["off", "on"], default=["off"])
    parser.add_argument("--checkpoint", action="store_true", help="activation checkpointing in all networks")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--feature-size", type=int, default=48, help="channels of the first stage (default: 48)")
    parser.add_argument("--patch", type=int, default=96, help="edge of the patch in voxels (default: 96)")
    parser.add_argument("--batch", type=int, default=1, help="patches of a batch (default: 1)")
    parser.add_argument(
        "--rounds", "--turns", dest="rounds", type=int, default=5, help="measured rounds (default: 5); 0: memory only"
    )
    parser.add_argument("--warmup", type=int, default=1, help="rounds that do not count (default: 1)")
    parser.add_argument("--threads", type=int, help="threads of torch on a CPU")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="wall time, or CPU time of this process"
    )
    cudnn_argument(parser)
    parser.add_argument("--no-memory", action="store_true", help="measure the time only")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument("--memory-request", help=argparse.SUPPRESS)
    options = parser.parse_args()

    def work() -> int:
        if options.memory_request:
            print(peak_memory(options.memory_request))
            return 0
        result = measure(options)
        publish(result, markdown(result), options.json)
        return 0

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
