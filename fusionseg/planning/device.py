"""The device that a plan is for: the GPU of this machine, a GPU elsewhere of a stated memory, or the CPU."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch

from fusionseg.training.precision import Precision, choose_precision
from fusionseg.utils.errors import UserError
from fusionseg.utils.machine import available_cpus
from fusionseg.utils.tables import counted

GB = 1e9
BUDGETS_GB = {"M": 8.0, "L": 24.0, "XL": 40.0}
"""GPU memory in GB of the presets of nnU-Net's residual-encoder U-Net (Isensee et al., 2024, arXiv:2404.09556)."""
_FAST_CORE, _SLOW_CORE = 100e9, 30e9
"""Multiply-adds a second that a core reaches in the convolutions of a U-Net: in bf16 with matrix units (measured on an
Intel Xeon with AMX: 98e9 to 138e9), and in fp32 with AVX (assumed)."""


@dataclass(frozen=True)
class PlannedDevice:
    """The device that a plan is for.

    Args:
        memory_gb: memory of the GPU in GB; None for a CPU.
        cores: of the CPU.
        precision: of the forward pass.
        basis: the reason, in words.
        is_elsewhere: True for a GPU of another machine, whose model is unknown.
        ranks: GPUs of the training, each with a rank of its own.
    """

    memory_gb: float | None
    cores: int
    precision: Precision
    basis: str
    is_elsewhere: bool = False
    ranks: int = 1

    @property
    def is_gpu(self) -> bool:
        return self.memory_gb is not None

    @property
    def multiply_adds_per_s(self) -> float:
        """Rough speed of the CPU."""
        return self.cores * (_FAST_CORE if self.precision.name == "bf16" else _SLOW_CORE)


def planned_device(memory: str | None, budget: str | None, gpus: int = 1) -> PlannedDevice:
    """The device of a request.

    Args:
        memory: memory of a GPU, such as "16GB"; None for this machine.
        budget: a preset, M, L or XL; None for none.
        gpus: GPUs of the training, all of this memory.

    Raises:
        UserError: the memory cannot be read, both are given and contradict each other, or there is no GPU for `gpus`.
    """
    device = _planned_device(memory, budget)
    if gpus == 1:
        return device
    if not device.is_gpu:
        raise UserError("--gpus: this machine has no GPU; state the memory of a GPU elsewhere, such as --memory 16GB")
    return replace(device, ranks=gpus, basis=f"{gpus} GPUs, each {device.basis}")


def _planned_device(memory: str | None, budget: str | None) -> PlannedDevice:
    stated = _parsed(memory) if memory is not None else None
    elsewhere = Precision("bf16", "a GPU elsewhere", "cuda")  # fp16 takes the same memory
    if budget is not None:
        target = BUDGETS_GB[budget]
        if stated is not None and stated < target:
            raise UserError(
                f"--memory: {stated:g} GB is less than the {target:g} GB of --budget {budget}; leave one of them out"
            )
        return PlannedDevice(target, 1, elsewhere, f"a GPU of {target:g} GB (--budget {budget})", is_elsewhere=True)
    if stated is not None:
        return PlannedDevice(stated, 1, elsewhere, f"a GPU of {stated:g} GB (--memory)", is_elsewhere=True)
    if torch.cuda.is_available():
        device = torch.device("cuda")
        properties = torch.cuda.get_device_properties(device)
        found = round(properties.total_memory / GB, 1)
        basis = f"the GPU of this machine, {properties.name} with {found:g} GB"
        return PlannedDevice(found, 1, choose_precision("auto", device), basis)
    cores = available_cpus()
    precision = choose_precision("auto", torch.device("cpu"))
    return PlannedDevice(
        None, cores, precision, f"the {counted(cores, 'CPU core')} of this machine in {precision.name} (no GPU)"
    )


def _parsed(text: str) -> float:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:GB|GIB|G)?\s*", text.upper())
    if found is None or not float(found[1]):
        raise UserError(f"--memory: expected the memory of a GPU in GB, such as 16GB, got {text!r}")
    return float(found[1])
