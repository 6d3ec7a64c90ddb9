"""A cluster profile: the scheduler of the runs, and the resources of a run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fusionseg.cluster.kubernetes.settings import KubernetesConfig
from fusionseg.cluster.slurm import seconds
from fusionseg.config.loading import lay_over, validate_section
from fusionseg.config.override import Override, parse_override
from fusionseg.config.section import Positive, Section
from fusionseg.config.shipped.lookup import CLUSTER, find_file
from fusionseg.config.yaml_location import read_yaml

_TIME = r"^(\d+-)?\d+:[0-5]\d:[0-5]\d$"
Text = Annotated[str, Field(min_length=1)]

# Options of sbatch that may not stand under `sbatch`, and the key of the profile that sets each of them.
_OWN_OPTIONS = {
    "account": "account", "array": "parallel", "constraint": "constraint", "cpus-per-task": "cpus_per_task",
    "error": "nothing (logs are in the jobs folder)", "exclude": "exclude", "gpus-per-node": "gpus_per_node",
    "gres": "gpus_per_node and gpu_type", "job-name": "nothing (it is the sweep's name)", "mem": "memory_gb_per_task",
    "nodes": "nodes", "ntasks-per-node": "tasks_per_node", "output": "nothing (logs are in the jobs folder)",
    "gpus": "gpus_per_node", "mem-per-cpu": "memory_gb_per_task", "mem-per-gpu": "memory_gb_per_task",
    "no-requeue": "requeue", "ntasks": "nodes and tasks_per_node", "open-mode": "nothing (logs are appended to)",
    "partition": "partition", "qos": "qos", "requeue": "requeue", "signal": "signal_s", "time": "time",
}  # fmt: skip


# Keys that have an effect on a local cluster, and on Kubernetes.
_LOCAL = {
    "cluster", "nodes", "gpus_per_node", "tasks_per_node", "cpus_per_task", "parallel", "environment", "python",
    "max_restarts",
}  # fmt: skip
_KUBERNETES = {
    "cluster", "nodes", "gpus_per_node", "tasks_per_node", "cpus_per_task", "memory_gb_per_task", "time", "signal_s",
    "max_restarts", "environment", "kubernetes",
}  # fmt: skip


class ClusterConfig(Section):
    """A cluster profile. Each run takes `nodes` nodes, with one task for each GPU."""

    cluster: Literal["slurm", "local", "kubernetes"]
    """`slurm`: submit by sbatch; `local`: run on this machine, with as many runs at a time as it has devices for;
    `kubernetes`: write manifests (`fusionseg manifest`)."""
    launcher: Literal["srun", "torchrun"] = "srun"
    """`srun`: SLURM starts a process for each rank; `torchrun`: SLURM starts torchrun on each node, which restarts the
    processes of the run when one of them dies."""
    nodes: Positive = 1
    """Nodes of a run."""
    gpus_per_node: Annotated[int, Field(ge=0)] = 1
    """GPUs of a run on each node; 0 trains on CPUs."""
    tasks_per_node: Positive | None = None
    """Ranks of a run on each node; null is one for each GPU, or a single one without GPUs."""
    gpu_type: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] | None = None
    """Type of the GPUs, as in --gres=gpu:TYPE:N."""
    cpus_per_task: Positive = 8
    """CPUs of a rank."""
    memory_gb_per_task: Annotated[float, Field(gt=0)] | None = None
    """Host memory of a rank; null is the partition's default."""
    time: str = "24:00:00"
    """Time limit of a job, [days-]hours:minutes:seconds. A run that takes longer is requeued and continued."""
    partition: Text | None = None
    """Partition of the jobs; null is the cluster's default."""
    account: Text | None = None
    """Account to be charged."""
    qos: Text | None = None
    """Quality of service."""
    constraint: Text | None = None
    """Features that the nodes must have."""
    exclude: Text | None = None
    """Nodes that are not to be used."""
    parallel: Positive = 8
    """Highest number of runs of a sweep at the same time."""
    requeue: bool = True
    """Requeue the job after a preemption, the time limit or a node failure."""
    max_requeues: Annotated[int, Field(ge=0)] = 50
    """Highest number of requeues of a job."""
    signal_s: Positive = 120
    """Seconds before the time limit at which SLURM signals the run to save a checkpoint and end. They must suffice for
    a step and a save; SLURM may send the signal up to a minute early."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """Highest number of times that torchrun restarts the processes of a node within a job."""
    setup: list[str] = Field(default_factory=list)
    """Shell lines before the run, such as those that load modules or activate an environment."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the run."""
    container: Text | None = None
    """Words before the command that start a container, such as `apptainer exec --nv image.sif`."""
    python: Text | None = None
    """The interpreter on the nodes; null is the interpreter that submits, or python3 in a container. Set it to `python`
    for an environment that `setup` activates."""
    sbatch: dict[str, str | int | bool] = Field(default_factory=dict)
    """Further options of sbatch, without dashes: `reservation: friday`."""
    kubernetes: KubernetesConfig = KubernetesConfig()
    """Image, volumes and further fields of the manifests of `fusionseg manifest`."""

    @model_validator(mode="after")
    def _fits(self) -> ClusterConfig:
        problems = []
        if self.tasks_per_node is not None and self.gpus_per_node and self.tasks_per_node != self.gpus_per_node:
            problems.append(
                f"tasks_per_node: {self.tasks_per_node} ranks on {self.gpus_per_node} GPUs (expected one on each GPU):"
                " remove it, or set gpus_per_node: 0 to train on CPUs"
            )
        if self.gpu_type is not None and not self.gpus_per_node:
            problems.append("gpu_type: a run has no GPU (gpus_per_node is 0): remove it")
        for option in self.sbatch:
            if option.lstrip("-") != option:
                problems.append(f"sbatch: {option}: write it without dashes: {option.lstrip('-')}")
            elif own := _OWN_OPTIONS.get(option.replace("_", "-")):
                problems.append(f"sbatch: {option} is set by {own}: remove it")
            elif self.sbatch[option] is False:
                problems.append(f"sbatch: {option} is false: remove an option that is not wanted")
        if re.fullmatch(_TIME, self.time) is None:
            problems.append(f"time: expected [days-]hours:minutes:seconds, such as 2-12:00:00, got {self.time!r}")
        elif self.signal_s >= self.time_s:
            problems.append(f"signal_s: {self.signal_s} s are not below the time limit of {self.time}: lower it")
        for name in self.environment:
            if not re.fullmatch(r"[A-Za-z_]\w*", name):
                problems.append(
                    f"environment: {name!r} is no name of a variable (expected letters, digits and _): rename it"
                )
        if self.cluster == "kubernetes":
            problems += [
                f"{key}: has no effect on Kubernetes: remove it, or set cluster: slurm"
                for key in sorted(self.model_fields_set - _KUBERNETES)
            ]
        if self.cluster == "local":
            problems += [
                f"{key}: has no effect on a local cluster: remove it, or set cluster: slurm"
                for key in sorted(self.model_fields_set - _LOCAL)
            ]
            if self.nodes != 1:
                problems.append(
                    f"nodes: expected 1 for a local cluster, which is this machine, got {self.nodes}: remove it"
                )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def ranks_per_node(self) -> int:
        """Ranks of a run on each node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    @property
    def world_size(self) -> int:
        """Ranks of a run on all nodes."""
        return self.nodes * self.ranks_per_node

    @property
    def time_s(self) -> int:
        """The time limit in seconds."""
        limit = seconds(self.time)
        assert limit is not None  # `_fits` has checked the text
        return limit


def load_cluster(path: str | Path, overrides: Sequence[str] = ()) -> ClusterConfig:
    """Read a cluster profile.

    Args:
        path: a file, or the name of a shipped profile such as "local"; see `find_file`.
        overrides: `key=value` settings that win over the file's.

    Raises:
        UserError: with all problems.
    """
    return read_cluster(path, overrides)


def read_cluster(
    path: str | Path, overrides: Sequence[str] = (), *, under: Sequence[Override] = (), folder: Path | None = None
) -> ClusterConfig:
    """Read a cluster profile with settings of a sweep's file.

    Args:
        path: as for `load_cluster`.
        overrides: as for `load_cluster`; they win over `under` too.
        under: settings that win over the file's.
        folder: paths and names are relative to this folder; None is the current one.

    Raises:
        UserError: with all problems.
    """
    raw, places = read_yaml(find_file(CLUSTER, path, folder))
    given = [*under, *(parse_override(text) for text in overrides)]
    return validate_section(ClusterConfig, *lay_over(raw, places, given))
