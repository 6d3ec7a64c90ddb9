"""Description of the machine on which a measurement was made."""

from __future__ import annotations

import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch

from fusionseg.utils.machine import available_cpus
from fusionseg.utils.tables import counted


def machine_info(device: torch.device) -> dict[str, Any]:
    """Collect what a measurement depends on: GPU and driver, processor, threads, versions, date.

    Args:
        device: device of the measurement; the GPU entries are None on a CPU.
    """
    cuda = device.type == "cuda"
    return {
        "gpu": torch.cuda.get_device_name(device) if cuda else None,
        "driver": _driver() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "cudnn_benchmark": torch.backends.cudnn.benchmark if cuda else None,
        "cpus": available_cpus(),
        "threads": torch.get_num_threads(),
        "processor": cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }


def machine_line(machine: dict[str, Any]) -> str:
    """Format the result of `machine_info` in one line."""
    gpu = f"{machine['gpu']} (driver {machine['driver']}, CUDA {machine['cuda']}), " if machine["gpu"] else ""
    searched = ", cudnn.benchmark" if machine.get("cudnn_benchmark") else ""
    return (
        f"{machine['date']}, {gpu}{machine['cpus']} CPUs of {machine['processor']} ({machine['capability']}),"
        f" {counted(machine['threads'], 'thread')}, torch {machine['torch']}{searched}"
    )


def cpu_name() -> str:
    """Name of the processor as the operating system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _driver() -> str | None:
    """Version of NVIDIA's kernel driver; None if it is unknown."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split()
    except OSError:
        return None
    return next((word for word in words if word.count(".") >= 1 and word.replace(".", "").isdigit()), None)
