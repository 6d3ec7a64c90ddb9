"""Binding of a rank to the CPUs near its GPU, as the kernel describes them."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger("fusionseg")

PCI_DEVICES = Path("/sys/bus/pci/devices")


def bind_to_near_cpus(device: torch.device) -> None:
    """Bind this process to those of its CPUs that are near its GPU.

    Threads that start afterwards, and memory that they use first, are then on the same NUMA node as the GPU. The CPUs
    that the scheduler or taskset gave to the process are never extended. Nothing changes on a CPU, and where none of
    the CPUs is near the GPU or the kernel does not say which are.

    Args:
        device: device of this rank.
    """
    if device.type != "cuda":
        return
    properties: Any = torch.cuda.get_device_properties(device)  # torch's types lack the PCI address
    try:
        address = f"{properties.pci_domain_id:04x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"
    except AttributeError:  # a version of torch that does not know it
        return
    allowed = os.sched_getaffinity(0)
    near = allowed & near_cpus(address)
    if near and near != allowed:
        os.sched_setaffinity(0, near)
        log.info("CPUs: %d of %d, near the GPU (distributed.bind_cpus)", len(near), len(allowed))


def near_cpus(address: str, devices: Path = PCI_DEVICES) -> set[int]:
    """Return the CPUs near a PCI device; empty if the kernel does not say.

    Args:
        address: of the device, such as 0000:3b:00.0.
        devices: folder of the kernel with an entry for each PCI device.
    """
    try:
        text = (devices / address / "local_cpulist").read_text(encoding="ascii")
        return parse_cpu_list(text)
    except (OSError, ValueError):
        return set()


def parse_cpu_list(text: str) -> set[int]:
    """Parse a list of CPUs in the form of the kernel, such as `0-15,32-47`.

    Raises:
        ValueError: the text has another form.
    """
    cpus: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus
