"""The sections about what a run says of itself: its records, and a closer look at some of its steps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fusionseg.config.section import Positive, Section


class LogConfig(Section):
    """What the run writes about itself."""

    every: Positive = 50
    """Steps between train records."""
    samples: bool = False
    """Name the case and the origin of every patch in the train records."""
    tensorboard: bool = True
    """Write TensorBoard scalars and a validation picture."""
    gpu_every_s: Annotated[float, Field(ge=0.1)] | None = 1.0
    """Seconds between samples of the GPUs (gpu.csv, through NVML); null takes none."""


class ProfileConfig(Section):
    """A closer look at some steps."""

    steps: Annotated[tuple[Annotated[int, Field(ge=0)], Positive], Field(strict=False)] | None = None
    """[first, end]: from the step after `first` up to step `end`; null looks at none."""
    # `with` is a word of the language; the key in the file keeps it.
    tool: Annotated[Literal["torch", "nsys", "memory"], Field(alias="with")] = "torch"
    """`torch`: a trace and its summary in the run's folder. `nsys`: start and stop Nsight Systems, which the run was
    started under (profiling/nsys.sh). `memory`: a snapshot of the GPU's memory for pytorch.org/memory_viz."""
    ranks: Literal["main", "all"] = "main"
    """Who is looked at: rank 0, or every rank."""
    stages: bool = False
    """Give the forward pass of every part of the network a range of its own, during the whole run."""

    @model_validator(mode="after")
    def _a_window(self) -> ProfileConfig:
        if self.steps is not None and self.steps[0] >= self.steps[1]:
            raise ValueError(f"steps: {list(self.steps)} holds no step: give [first, end] with first below end")
        if self.steps is None and self.tool != "torch":
            raise ValueError(f"with: {self.tool} has nothing to look at: give steps, such as [100, 110]")
        return self
