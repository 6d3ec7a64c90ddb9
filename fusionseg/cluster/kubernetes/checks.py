"""Checks of runs that are to become jobs of Kubernetes, without a cluster and without their data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from fusionseg.cluster.kubernetes.job import KubernetesJob
from fusionseg.cluster.profile import ClusterConfig
from fusionseg.config import RunConfig
from fusionseg.config.data.dataset import DataConfig, SourceConfig
from fusionseg.distributed.batch_arithmetic import check_batch
from fusionseg.utils.errors import UserError, some_of

_MAX_NAMED = 2
_SET_IN_PODS = re.compile(r"POD_IP|MASTER_(ADDR|PORT)|RANK|WORLD_SIZE|LOCAL_(RANK|WORLD_SIZE)|GROUP_RANK|PET_.*")
"""Variables that the operator, torchrun or the manifest sets in each pod."""


def check_jobs(jobs: Sequence[KubernetesJob]) -> None:
    """Make sure that runs can be written as jobs of Kubernetes.

    Args:
        jobs: the runs with their cluster profiles.

    Raises:
        UserError: with all problems of all runs.
    """
    problems: dict[str, dict[str, None]] = {}
    for job in jobs:
        for problem in (*_profile_problems(job.cluster), *_run_problems(job.config, job.cluster)):
            problems.setdefault(problem, {})[job.config.name] = None
    found = []
    for problem, names in problems.items():
        concerned = "" if len(names) == len(jobs) else f" [{some_of(list(names), _MAX_NAMED)}]"
        found.append(f"{problem}{concerned}")
    if found := [*found, *_equal_names(jobs)]:
        raise UserError(found)


def _equal_names(jobs: Sequence[KubernetesJob]) -> Iterator[str]:
    runs: dict[str, list[str]] = {}
    for job in jobs:
        runs.setdefault(job.name, []).append(job.config.name)
    for name, names in runs.items():
        if len(names) > 1:
            yield f"run_name: the runs {some_of(names)} would all be the job {name}: choose other names"


def _profile_problems(cluster: ClusterConfig) -> Iterator[str]:
    if cluster.cluster == "local":
        yield "cluster: local is this machine: give a profile with cluster: kubernetes, or with cluster: slurm"
    if cluster.kubernetes.image is None:
        yield (
            "kubernetes.image: there is none (expected an image with fusionseg that the cluster can pull): add --image"
            " REGISTRY/NAME:TAG; launch/container/Dockerfile makes one"
        )
    if not cluster.kubernetes.claims:
        yield (
            "kubernetes.claims: there are none, and a pod without them has no data and loses its run: add --claim"
            " NAME=/PATH for each persistent volume claim"
        )
    for name in filter(_SET_IN_PODS.fullmatch, cluster.environment):
        yield f"environment.{name}: is set in each pod: remove it"


def _run_problems(config: RunConfig, cluster: ClusterConfig) -> Iterator[str]:
    try:
        check_batch(config, cluster.world_size)
    except UserError as error:
        yield from error.problems
    if config.resume == "never":
        yield "resume: never: pods that are started again could not continue the run: remove it"
    if cluster.kubernetes.claims:
        for key, text, is_written in _paths(config):
            if problem := _path_problem(text, cluster, is_written=is_written):
                yield f"{key}: {problem}"


def _paths(config: RunConfig) -> Iterator[tuple[str, str, bool]]:
    """Yield the paths of a configuration: key, text, and whether the run writes there."""
    sources: list[tuple[str, DataConfig | SourceConfig]] = [("data", config.data)]
    sources += [(f"data.also.{number}", part) for number, part in enumerate(config.data.also)]
    for key, source in sources:
        yield f"{key}.root", source.root or "", False
        for name, is_written in (("base_dir", False), ("prepared", True)):
            if (text := getattr(source, name)) is not None:
                yield f"{key}.{name}", text, is_written
        for name in ("splits", "table"):  # a relative one lies in the folder of the data set
            text = getattr(source, name)
            if text is not None and text.startswith(("/", "~")):
                yield f"{key}.{name}", text, False
    yield "output", config.output, True
    if config.start_weights is not None:
        yield "init_from", config.start_weights, False


def _path_problem(text: str, cluster: ClusterConfig, *, is_written: bool) -> str:
    mounts = cluster.kubernetes.mounts()
    expected = f"expected a path in the pods, below {' or '.join(sorted(map(str, mounts)))}"
    path = PurePosixPath(text)
    if not text:
        return f"there is none ({expected})"
    if not path.is_absolute() or ".." in path.parts:
        return f"{text} is no absolute path ({expected})"
    claim = next((found for folder, found in mounts.items() if path.is_relative_to(folder)), None)
    if claim is None:
        return f"{text} lies in no claim ({expected}): correct it, or add --claim NAME=/PATH"
    name, read_only = claim
    if is_written and read_only:
        return f"{text} lies in the claim {name}, which is read-only: choose another path, or mount it without :ro"
    return ""
