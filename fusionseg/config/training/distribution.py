"""Section about the ranks of a run: `distributed`."""

from __future__ import annotations

from typing import ClassVar, Literal

from fusionseg.config.section import Positive, SectionWithOptions


class DistributedConfig(SectionWithOptions):
    """The ranks of a run, and what they exchange. A single rank needs none of it."""

    left_out: ClassVar[tuple[str, ...]] = ("timeout_s", "gradients", "bind_cpus")

    timeout_s: Positive = 1800
    """Seconds that a collective operation of NCCL or gloo waits for the other ranks. Then the run ends with an error.
    The ranks wait for the preparation of the data and for the loading of the cache without this limit."""
    gradients: Literal["fp32", "bf16"] = "fp32"
    """Type in which the ranks exchange gradients. `bf16` sends half the bytes. It rounds each gradient, and the mean
    over the ranks, to 8 significant bits, so that the training differs slightly from that of one rank."""
    bind_cpus: bool = True
    """Bind each rank to those of its CPUs that are near its GPU (the same NUMA node). Without a GPU nothing changes."""
