"""Peak memory and time of `fusionseg predict` for one large volume with many classes, beside the stated bound.

    python profiling/benchmark_prediction_memory.py [--shape 512 512 600] [--classes 100] [--patch 64] [--overlap 0.25]
        [--memory GB] [--json FILE]

The program writes a checkpoint of a very small U-Net with random weights and a NIfTI file of noise, and starts the
command in a process of its own, whose peak resident set is measured. The bound is that of docs/results.md: the logits
by the estimate of the command, and the rest of the process, which is that of a prediction of a small volume, and a
number of bytes for each voxel of the file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from fusionseg.config import validate
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.data.preprocessing.volume import Volume
from fusionseg.inference.streaming.member_volume import MemberVolume
from fusionseg.inference.streaming.memory import stream_memory
from fusionseg.performance.benchmarking import measure_and_publish
from fusionseg.performance.machine import machine_info, machine_line
from fusionseg.training.tasks.choice import build_task
from fusionseg.utils.tables import markdown_table

SMALL = (64, 64, 64)
VOXEL_BYTES = 16
"""Memory for each voxel of the file: the file as it was read, the image in float32 at two steps of its preparation,
and the mask."""


def write_checkpoint(path: Path, classes: int, patch: int, overlap: float) -> None:
    """Write a checkpoint of a very small network.

    Args:
        path: the file.
        classes: number of classes, the background included.
        patch: size of a window along each axis.
        overlap: of neighbouring windows.
    """
    plain: dict[str, Any] = {
        "name": "benchmark",
        "model": {"name": "monai_unet", "channels": [4, 8], "num_res_units": 0},
        "data": {"root": str(path.parent), "patch": [patch] * 3, "intensity": {"mode": "none"}, "orientation": None},
        "validate": {"overlap": overlap, "window_batch": 1},
    }
    config = validate(plain)
    torch.manual_seed(0)
    labels = {value: f"class{value}" if value else "background" for value in range(classes)}
    network = build_task(config, LabelScheme.of_names(list(labels.values()))).build_network(1, classes)
    state = {"model": network.state_dict(), "config": plain, "labels": labels, "channels": ["CT"], "step": 1}
    torch.save(state, path)


def write_image(path: Path, shape: tuple[int, int, int]) -> Path:
    """Write noise as a file that is not compressed."""
    values = np.random.default_rng(0).integers(-1000, 1000, shape, np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([0.8, 0.8, 1.0, 1.0])), path)
    return path


def peak_of_command(checkpoint: Path, image: Path, output: Path, memory_gb: float | None) -> tuple[float, float]:
    """Predict by the command; the peak resident set in bytes, and the seconds."""
    command = [sys.executable, "-m", "fusionseg", "predict", checkpoint, "-i", image, "-o", output, "--device", "cpu"]
    if memory_gb is not None:
        command += ["--memory", str(memory_gb)]
    started, peak = time.perf_counter(), 0
    with subprocess.Popen([str(word) for word in command]) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            lines = status.read_text().splitlines()
            peak = max([peak, *(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))])
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(process.returncode)
    return peak, time.perf_counter() - started


def logits_bytes(arguments: argparse.Namespace, shape: tuple[int, int, int]) -> int:
    """The estimate of the command for the logits of the volume."""
    image = np.broadcast_to(np.float32(0), (1, *shape))
    volume = Volume(image, None, np.eye(4), shape, np.eye(4))
    member = MemberVolume(volume, torch.nn.Identity(), (arguments.patch,) * 3, arguments.overlap, 1)
    return stream_memory([member], member.longest_axis(), arguments.classes).total


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure a small and the large volume; the result has JSON values."""
    checkpoint = folder / "checkpoint.pt"
    write_checkpoint(checkpoint, arguments.classes, arguments.patch, arguments.overlap)
    shape = tuple(arguments.shape)
    rest, _ = peak_of_command(checkpoint, write_image(folder / "small.nii", SMALL), folder / "small", None)
    logits = logits_bytes(arguments, shape)
    print(
        f"bound for the logits: {logits / 1e9:.3g} GB; the process with a small volume: {rest / 1e9:.3g} GB", flush=True
    )
    image = write_image(folder / "large.nii", shape)
    peak, seconds = peak_of_command(checkpoint, image, folder / "large", arguments.memory)
    return {
        "machine": machine_info(torch.device("cpu")),
        "about": f"{'x'.join(map(str, shape))} voxels, {arguments.classes} classes, windows of {arguments.patch}^3,"
        f" overlap {arguments.overlap:g}",
        "logits_bytes": logits,
        "bound_bytes": logits + rest + VOXEL_BYTES * int(np.prod(shape)),
        "whole_logits_bytes": 4 * arguments.classes * int(np.prod(shape)),
        "peak_bytes": peak,
        "seconds": seconds,
    }


def markdown(result: dict[str, Any]) -> str:
    """Format the result as a table."""
    keys = ("whole_logits_bytes", "logits_bytes", "bound_bytes", "peak_bytes")
    values = [f"{result[key] / 1e9:.3g}" for key in keys]
    head = ("logits of the whole volume, GB", "bound of the logits, GB", "bound of the process, GB", "peak, GB", "s")
    rows = [head, (*values, f"{result['seconds']:.3g}")]
    return f"{machine_line(result['machine'])}\n\n{result['about']}\n\n{markdown_table(rows)}"


def main() -> int:
    """Measure, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=[512, 512, 600], help="voxels (default: 512 512 600)")
    parser.add_argument("--classes", type=int, default=100, help="number of classes (default: 100)")
    parser.add_argument("--patch", type=int, default=64, help="size of a window (default: 64)")
    parser.add_argument("--overlap", type=float, default=0.25, help="overlap of the windows (default: 0.25)")
    parser.add_argument("--memory", type=float, metavar="GB", help="the option of the command (default: its own)")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    return measure_and_publish(lambda folder: measure(arguments, folder), markdown, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
