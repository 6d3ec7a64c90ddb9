"""Job arrays of a sweep: one for each set of resources, and several where SLURM limits the size of an array."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fusionseg.cluster.profile import ClusterConfig
from fusionseg.cluster.resources.of_runs import by_resources
from fusionseg.cluster.slurm import call
from fusionseg.cluster.sweep import SweepRun
from fusionseg.utils.errors import UserError


@dataclass(frozen=True)
class JobArray:
    """Runs that are submitted together."""

    runs: list[SweepRun]
    cluster: ClusterConfig
    """Their profile; `parallel` is that of this array."""
    after: int | None = None
    """Position of the array that must have ended before; None if there is none."""


def plan_arrays(runs: Sequence[SweepRun], cluster: ClusterConfig, most: int | None) -> list[JobArray]:
    """Divide runs into job arrays.

    Arrays with the same resources share `parallel`: the limits of those that are in the queue together have it as their
    sum. If there are more arrays than that, the others wait for the end of one.

    Args:
        runs: the runs, in the order in which they should start.
        cluster: the profile of the runs without one of their own.
        most: most runs in an array; None if there is no limit.
    """
    arrays: list[JobArray] = []
    for own, members in by_resources(runs, cluster):
        count = 1 if most is None else -(-len(members) // most)
        together = min(count, own.parallel)
        first = len(arrays)
        for number in range(count):
            part = members[number * len(members) // count : (number + 1) * len(members) // count]
            lane = number % together
            parallel = own.parallel // together + (lane < own.parallel % together)
            after = None if number < together else first + number - together
            arrays.append(JobArray(part, own.model_copy(update={"parallel": parallel}), after))
    return arrays


def max_array_size() -> int | None:
    """Most jobs that SLURM takes in one array (`MaxArraySize`); 1 if it takes none, None if it does not say."""
    try:
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", call(["scontrol", "show", "config"]), re.MULTILINE)
    except UserError:
        return None
    return max(1, int(found[1])) if found else None


def with_dependency(cluster: ClusterConfig, job: str) -> ClusterConfig:
    """The profile of jobs that start when another job, or all jobs of another array, have ended."""
    wanted = [str(cluster.sbatch["dependency"])] if "dependency" in cluster.sbatch else []
    dependency = ",".join([*wanted, f"afterany:{job}"])
    return cluster.model_copy(update={"sbatch": {**cluster.sbatch, "dependency": dependency}})
