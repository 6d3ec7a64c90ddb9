"""Sections about records and profiling: `log` and `profile`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from fusionseg.config.outside_part import OutsidePart, name_to_section
from fusionseg.config.section import Positive, Section, SectionWithOptions

SinkPart = Annotated[OutsidePart, BeforeValidator(name_to_section)]


class WandbConfig(Section):
    """Weights & Biases, of the extra `wandb`."""

    project: str = "fusionseg"
    """The project."""
    entity: str | None = None
    """Team or user; null is the default of the account."""
    tags: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Tags of the run."""
    mode: Literal["online", "offline"] | None = None
    """`offline` writes into wandb/ of the run folder, for `wandb sync`, and needs no network; null is the value of
    WANDB_MODE, or online."""


class MlflowConfig(Section):
    """MLflow, of the extra `mlflow`."""

    uri: str | None = None
    """Tracking URI: a server, a database such as sqlite:////scratch/mlflow.db, or a folder; null is that of
    MLFLOW_TRACKING_URI, or MLflow's default."""
    experiment: str = "fusionseg"
    """The experiment, which is made if there is none."""


class LogConfig(SectionWithOptions):
    """Records of the run."""

    left_out: ClassVar[tuple[str, ...]] = ("wandb", "mlflow", "sinks")

    every: Positive = 50
    """Steps between train records."""
    samples: bool = False
    """Write the case and the origin of every patch into the train records."""
    tensorboard: bool = True
    """Write TensorBoard curves, validation pictures, and the configuration with the final scores."""
    gpu_every_s: Annotated[float, Field(ge=0.1)] | None = 1.0
    """Seconds between samples of the GPUs (gpu.csv, through NVML); null takes none."""
    wandb: WandbConfig | None = None
    """Send the records to Weights & Biases; null does not, `{}` takes the defaults."""
    mlflow: MlflowConfig | None = None
    """Send the records to MLflow; null does not, `{}` takes the defaults."""
    sinks: Annotated[tuple[SinkPart, ...], Field(strict=False)] = ()
    """Further receivers of the records, each a dotted path to a class of your own (docs/extending.md)."""


class ProfileConfig(Section):
    """A profile of some steps."""

    steps: Annotated[tuple[Annotated[int, Field(ge=0)], Positive], Field(strict=False)] | None = None
    """[first, end]: the steps after `first`, up to step `end`; null profiles none."""
    # `with` is a keyword of Python; the key of the file keeps the name.
    tool: Annotated[Literal["torch", "nsys", "memory"], Field(alias="with")] = "torch"
    """`torch`: a trace and its summary in the run's folder. `nsys`: start and stop Nsight Systems, which the run was
    started under (profiling/nsys.sh). `memory`: a snapshot of the GPU's memory for pytorch.org/memory_viz."""
    ranks: Literal["main", "all"] = "main"
    """Profiled ranks: rank 0 (main), or every rank."""
    stages: bool = False
    """Give the forward pass of every part of the network a range of its own, during the whole run."""

    @model_validator(mode="after")
    def _range_fits(self) -> ProfileConfig:
        if self.steps is not None and self.steps[0] >= self.steps[1]:
            raise ValueError(f"steps: expected [first, end] with first below end, got {list(self.steps)}")
        if self.steps is None and self.tool != "torch":
            raise ValueError(f"with: {self.tool} has no effect without steps; add steps, such as [100, 110]")
        return self
