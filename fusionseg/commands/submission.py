"""The submission of a sweep, as `submit` and `table` make it: decide, print, and train or queue the runs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fusionseg.cluster.local import check_devices, run_locally
from fusionseg.cluster.profile import ClusterConfig, load_cluster
from fusionseg.cluster.resources.arrays import max_array_size, plan_arrays
from fusionseg.cluster.resources.of_runs import with_resources
from fusionseg.cluster.resources.time_limit import time_limit_warnings
from fusionseg.cluster.submission import decide_submissions, submissions_table
from fusionseg.cluster.submit import check_submission, only_one, sbatch_text, submit
from fusionseg.cluster.sweep import Sweep, load_sweep
from fusionseg.utils.logs import log
from fusionseg.utils.tables import counted

_PROFILE = "cluster."


@dataclass(frozen=True)
class Submitted:
    """A sweep whose runs have been submitted, or trained on this machine."""

    sweep: Sweep
    cluster: ClusterConfig
    failed: int = 0
    """Number of runs that were trained here and failed."""
    is_queued: bool = False
    """Whether SLURM trains the runs, now or later."""


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the settings for the cluster profile, without their prefix, from those for the runs."""
    own = [text.removeprefix(_PROFILE) for text in overrides if text.startswith(_PROFILE)]
    return own, [text for text in overrides if not text.startswith(_PROFILE)]


def submit_sweep(
    file: str | Path, profile: str, overrides: Sequence[str], *, dry_run: bool = False, extend: bool = False
) -> Submitted:
    """Submit the runs of a sweep that are due, and print them. On this machine, train them and wait for them.

    Args:
        file: the file or the name of the sweep.
        profile: the file or the name of the cluster profile.
        overrides: `key.path=value` settings for all runs; `cluster.KEY=value` is for the profile.
        dry_run: print every run and the batch script; submit nothing.
        extend: runs whose configuration has changed go on with it, also finished ones.

    Raises:
        UserError: the sweep, the profile or the machine does not allow it; with all problems.
    """
    of_profile, of_runs = split_overrides(overrides)
    cluster = load_cluster(profile, of_profile)
    sweep = with_resources(load_sweep(file, of_runs), profile, cluster, of_profile)
    local = cluster.cluster == "local"
    submissions = decide_submissions(sweep, cluster, extend=extend)
    due = [submission.run for submission in submissions if submission.is_due]
    print(f"{sweep.folder}: {counted(len(submissions), 'run')}, {len(due)} to {'do' if dry_run else 'submit'}\n")
    print(submissions_table(submissions, cluster))
    if not due:
        return Submitted(sweep, cluster, is_queued=not local)
    for text in [] if local else time_limit_warnings(due, cluster):
        log.warning("%s", text)
    no_slurm = dry_run and not local and shutil.which("sinfo") is None
    arrays = [] if local else plan_arrays(due, cluster, None if no_slurm else max_array_size())
    for array in arrays if dry_run else []:
        print(f"\n{sbatch_text(sweep, array.cluster, len(array.runs))}")
    if local:
        check_devices(cluster)
    check_submission(sweep, arrays, ask=not local and not no_slurm)
    if no_slurm:
        print(
            "\nSLURM is not installed here (no sinfo), so it was not asked: on the login node it may refuse these jobs"
        )
    if dry_run:
        return Submitted(sweep, cluster)
    with only_one(sweep):
        # Again, since another process may have submitted it meanwhile.
        submissions = decide_submissions(sweep, cluster, extend=extend)
        if local:
            return Submitted(sweep, cluster, run_locally(sweep, submissions, cluster))

        def announce(jobs: list[str]) -> None:
            arrays = list(dict.fromkeys(job.partition("_")[0] for job in jobs))
            named = f"job{'s' if len(arrays) > 1 else ''} {', '.join(arrays)}"
            print(f"\nsubmitted {counted(len(jobs), 'run')} as {named}; see: fusionseg status {sweep.folder}")
            sys.stdout.flush()

        submit(sweep, submissions, cluster, announce)
    return Submitted(sweep, cluster, is_queued=True)
