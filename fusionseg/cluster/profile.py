"""A cluster profile: where runs go and with what resources."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fusionseg.cluster.slurm import seconds
from fusionseg.config.loading import lay_over, validate_section
from fusionseg.config.override import parse_override
from fusionseg.config.section import Positive, Section
from fusionseg.config.shipped.lookup import CLUSTER, find_file
from fusionseg.config.yaml_location import read_yaml

_TIME = r"^(\d+-)?\d+:[0-5]\d:[0-5]\d$"
Text = Annotated[str, Field(min_length=1)]

# What the profile has keys for, and what submitit sets: not to be given under `sbatch`.
_OWN_OPTIONS = {
    "account": "account", "array": "parallel", "constraint": "constraint", "cpus-per-task": "cpus_per_task",
    "error": "nothing (logs are in the jobs folder)", "exclude": "exclude", "gpus-per-node": "gpus_per_node",
    "gres": "gpus_per_node and gpu_type", "job-name": "nothing (it is the sweep's name)", "mem": "memory_gb_per_task",
    "nodes": "nodes", "ntasks-per-node": "tasks_per_node", "output": "nothing (logs are in the jobs folder)",
    "gpus": "gpus_per_node", "mem-per-cpu": "memory_gb_per_task", "mem-per-gpu": "memory_gb_per_task",
    "no-requeue": "requeue", "ntasks": "nodes and tasks_per_node", "open-mode": "nothing (logs are appended to)",
    "partition": "partition", "qos": "qos", "requeue": "requeue", "signal": "signal_s", "time": "time",
}  # fmt: skip


# All that a local cluster reads.
_LOCAL = {
    "cluster", "nodes", "gpus_per_node", "tasks_per_node", "cpus_per_task", "parallel", "environment", "python",
    "max_restarts",
}  # fmt: skip


class ClusterConfig(Section):
    """A cluster profile. Each run takes `nodes` nodes; there is one task for each GPU."""

    cluster: Literal["slurm", "local"]
    """`slurm`: submit by sbatch; `local`: run on this machine, as many runs at a time as it has devices for."""
    launcher: Literal["srun", "torchrun"] = "srun"
    """`srun`: SLURM starts a process for each rank; `torchrun`: one torchrun on each node, which starts a run's
    processes again when one of them dies."""
    nodes: Positive = 1
    """Nodes of a run."""
    gpus_per_node: Annotated[int, Field(ge=0)] = 1
    """GPUs of a run on each node; 0 trains on CPUs."""
    tasks_per_node: Positive | None = None
    """Ranks of a run on each node; null is one for each GPU, or one."""
    gpu_type: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] | None = None
    """Type of the GPUs, as in --gres=gpu:TYPE:N."""
    cpus_per_task: Positive = 8
    """CPUs of a rank."""
    memory_gb_per_task: Annotated[float, Field(gt=0)] | None = None
    """Host memory of a rank; null is the partition's default."""
    time: str = "24:00:00"
    """Time limit of a job, [days-]hours:minutes:seconds. A run that takes longer is requeued and goes on."""
    partition: Text | None = None
    """Partition of the jobs; null is the cluster's default."""
    account: Text | None = None
    """Account that is charged."""
    qos: Text | None = None
    """Quality of service."""
    constraint: Text | None = None
    """Features that the nodes must have."""
    exclude: Text | None = None
    """Nodes not to be used."""
    parallel: Positive = 8
    """Runs of a sweep at a time, at most."""
    requeue: bool = True
    """After preemption, time limit or node failure the job is queued again."""
    max_requeues: Annotated[int, Field(ge=0)] = 50
    """How often, at most."""
    signal_s: Positive = 120
    """Seconds before the time limit at which the run is told to save and to leave. It must be longer than a step and a
    save; SLURM may send it up to a minute early."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """How often torchrun starts the processes of a node again within a job."""
    setup: list[str] = Field(default_factory=list)
    """Lines of shell before the run: modules, the environment."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Variables of the run."""
    container: Text | None = None
    """What is put before the command, such as `apptainer exec --nv image.sif`."""
    python: Text | None = None
    """The interpreter on the nodes; null is the one that submits, or python3 in a container. `python` is that of an
    environment which `setup` activates."""
    sbatch: dict[str, str | int | bool] = Field(default_factory=dict)
    """Further options of sbatch, without their dashes: `reservation: friday`."""

    @model_validator(mode="after")
    def _fits(self) -> ClusterConfig:
        problems = []
        if self.tasks_per_node is not None and self.gpus_per_node and self.tasks_per_node != self.gpus_per_node:
            problems.append(
                f"tasks_per_node: {self.tasks_per_node} on {self.gpus_per_node} GPUs, and a rank has a GPU of its own:"
                " remove it, or set gpus_per_node: 0 to train on CPUs"
            )
        if self.gpu_type is not None and not self.gpus_per_node:
            problems.append("gpu_type: there are no GPUs (gpus_per_node is 0): remove it")
        for option in self.sbatch:
            if option.lstrip("-") != option:
                problems.append(f"sbatch: {option} is written without dashes: {option.lstrip('-')}")
            elif own := _OWN_OPTIONS.get(option.replace("_", "-")):
                problems.append(f"sbatch: {option} is set by {own}: remove it")
            elif self.sbatch[option] is False:
                problems.append(f"sbatch: {option} is false: leave out an option that is not wanted")
        if re.fullmatch(_TIME, self.time) is None:
            problems.append(f"time: {self.time!r} is not written [days-]hours:minutes:seconds, such as 2-12:00:00")
        elif self.signal_s >= self.time_s:
            problems.append(f"signal_s: {self.signal_s} s are not less than the time limit of {self.time}: lower it")
        for name in self.environment:
            if not re.fullmatch(r"[A-Za-z_]\w*", name):
                problems.append(f"environment: {name!r} is no name of a variable")
        if self.cluster == "local":
            problems += [
                f"{key}: is for SLURM, and the cluster is local: remove it"
                for key in sorted(self.model_fields_set - _LOCAL)
            ]
            if self.nodes != 1:
                problems.append("nodes: a local cluster is this one machine: remove it")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def ranks_per_node(self) -> int:
        return self.tasks_per_node or max(1, self.gpus_per_node)

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def time_s(self) -> int:
        """The time limit in seconds."""
        limit = seconds(self.time)
        assert limit is not None  # the schema has looked
        return limit


def load_cluster(path: str | Path, overrides: Sequence[str] = ()) -> ClusterConfig:
    """Read a cluster profile; overrides, `key=value`, win.

    Args:
        path: a file, or the name of a shipped profile such as "local"; see `find_file`.

    Raises:
        UserError: with all problems.
    """
    raw, places = read_yaml(find_file(CLUSTER, path))
    return validate_section(ClusterConfig, *lay_over(raw, places, [parse_override(text) for text in overrides]))
