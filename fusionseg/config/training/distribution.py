"""Section about the ranks of a run: `distributed`."""

from __future__ import annotations

from typing import ClassVar, Literal

from fusionseg.config.section import Positive, SectionWithOptions


class DistributedConfig(SectionWithOptions):
    """The ranks of a run, and what they exchange. A single rank needs none of it."""

    left_out: ClassVar[tuple[str, ...]] = (
        "parallel",
        "timeout_s",
        "gradients",
        "bind_cpus",
        "hang_warn_s",
        "hang_end_s",
    )

    parallel: Literal["ddp", "fsdp"] = "ddp"
    """`ddp` keeps the whole network and optimizer on each rank. `fsdp` divides weights, gradients and states of the
    optimizer among the ranks, for a network that does not fit otherwise; the ranks then exchange weights too. The
    training is the same up to rounding. A run can be continued with the other value, and on any number of ranks."""
    timeout_s: Positive = 1800
    """Seconds that a collective operation of NCCL or gloo waits for the other ranks. Then the run ends with an error.
    The ranks wait for the preparation of the data and for the loading of the cache without this limit."""
    gradients: Literal["fp32", "bf16"] = "fp32"
    """Type in which the ranks exchange gradients. `bf16` sends half the bytes. It rounds each gradient, and the mean
    over the ranks, to 8 significant bits, so that the training differs slightly from that of one rank."""
    bind_cpus: bool = True
    """Bind each rank to those of its CPUs that are near its GPU (the same NUMA node). Without a GPU nothing changes."""

    hang_warn_s: Positive | None = 60
    """Seconds without any progress of any rank in a training step. Then the run says which ranks are missed and in
    which phase they were, and each rank writes its stacks into the folder `hangs` of the run. Outside of steps (start,
    validation, checkpoint) and in the first two steps the time is five times as long, and in each phase at least three
    times the longest time without progress so far. `null` does not look for it."""
    hang_end_s: Positive | None = 900
    """The same for the end of the run: all processes end with exit status 1, and a job of `fusionseg submit` is queued
    again. The run goes on from its last checkpoint. `null` never ends a run."""

    def problems(self, optimizer: str, *, compiled: bool) -> list[str]:
        """List the settings of other sections that do not fit this one, with the fixes.

        Args:
            optimizer: `optim.name`.
            compiled: `train.compile`.
        """
        problems = []
        if self.hang_warn_s is not None and self.hang_end_s is not None and self.hang_end_s < self.hang_warn_s:
            problems.append(
                f"distributed.hang_end_s: {self.hang_end_s} is below hang_warn_s ({self.hang_warn_s}); raise it, or set"
                " it to null"
            )
        if self.parallel == "fsdp" and optimizer not in _SHARDED_OPTIMIZERS:
            problems.append(
                f"distributed.parallel: fsdp is not possible with the optimizer {optimizer}, which may need whole"
                f" gradients (expected optim.name {', '.join(_SHARDED_OPTIMIZERS)}); choose one of these, or set ddp"
            )
        if self.parallel == "fsdp" and compiled:
            problems.append(
                "distributed.parallel: fsdp is not possible with a compiled network; set train.compile=false, or ddp"
            )
        return problems


_SHARDED_OPTIMIZERS = ("adamw", "adam", "sgd")
"""They treat each value of a weight on its own, and skip a step on the device."""
