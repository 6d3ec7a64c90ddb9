"""The submission of a sweep, as `submit` and `table` make it: decide, print, and train or queue the runs."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fusionseg.cluster.local import check_devices, run_locally
from fusionseg.cluster.profile import ClusterConfig, load_cluster
from fusionseg.cluster.resources.arrays import max_array_size, plan_arrays
from fusionseg.cluster.resources.of_runs import with_resources
from fusionseg.cluster.resources.time_limit import time_limit_warnings
from fusionseg.cluster.search.halving import open_search, search_table, still_active
from fusionseg.cluster.status import RunOverview, read_status
from fusionseg.cluster.submission import decide_submissions, submissions_table
from fusionseg.cluster.submit import check_submission, only_one, sbatch_text, submit
from fusionseg.cluster.sweep import Sweep, load_sweep
from fusionseg.utils.errors import UserError, some_of
from fusionseg.utils.logs import log
from fusionseg.utils.tables import counted

_PROFILE = "cluster."
_POLL_S = 10.0


@dataclass(frozen=True)
class Submitted:
    """A sweep whose runs have been submitted, or trained on this machine."""

    sweep: Sweep
    cluster: ClusterConfig
    failed: int = 0
    """Number of runs that were trained here and failed."""
    is_queued: bool = False
    """Whether SLURM trains the runs, now or later."""
    is_complete: bool = True
    """False if a signal has ended the trainings here, or a search has not reached its end."""


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
    _refuse_kubernetes(sweep, cluster, file, profile)
    if sweep.search is not None:
        if extend:
            raise UserError(f"{sweep.folder}: a search cannot be extended; choose another name for the sweep")
        return _search(sweep, cluster, dry_run=dry_run)
    return _submit_runs(sweep, cluster, dry_run=dry_run, extend=extend)


def _refuse_kubernetes(sweep: Sweep, cluster: ClusterConfig, file: str | Path, profile: str) -> None:
    """Refuse runs on Kubernetes, where kubectl submits them.

    Raises:
        UserError: the profile, or that of a run, has `cluster: kubernetes`.
    """
    if any((run.cluster or cluster).cluster == "kubernetes" for run in sweep.runs):
        raise UserError(
            f"cluster: kubernetes: runs are not submitted there; write their manifests: fusionseg manifest {file}"
            f" --cluster {profile} ... > jobs.yaml; kubectl apply -f jobs.yaml"
        )


def _search(sweep: Sweep, cluster: ClusterConfig, *, dry_run: bool) -> Submitted:
    """Submit the runs of one rung of a search after the other, and wait for them; see `submit_sweep`.

    Returns:
        The runs of the last rung, or of the rung that is not done.
    """
    search = open_search(sweep)
    failed = 0  # in the last rung
    while not search.is_done:
        part = search.part()
        print(f"{'' if dry_run else chr(10)}{search.title}: {counted(len(part.runs), 'run')}")
        submitted = _submit_runs(part, cluster, dry_run=dry_run)
        if dry_run:
            return submitted
        failed = submitted.failed  # that of an earlier rung is no failure of the search
        if not submitted.is_complete:
            return submitted
        names = [run.config.name for run in part.runs]
        states = _wait(part, names) if submitted.is_queued else _states(part)
        search, left = search.decided(states)
        if left:
            print(f"\n{sweep.folder}: {some_of(left)}: not at the end of the rung yet; the same command goes on")
            return Submitted(part, cluster, failed, submitted.is_queued, is_complete=False)
    print(f"\n{search_table(sweep.folder)}")
    if search.rungs[-1].best is None:
        raise UserError(f"{sweep.folder}: no run of the search has a score: see fusionseg status {sweep.folder}")
    print(f"\nthe best: {sweep.folder / search.rungs[-1].best}")
    return Submitted(search.finalists(), cluster, failed)


def _states(sweep: Sweep) -> dict[str, RunOverview]:
    return {state.path.name: state for state in read_status(sweep.folder)[0]}


def _wait(sweep: Sweep, names: list[str]) -> dict[str, RunOverview]:
    """Wait until SLURM has ended the runs of a rung, and return their states."""
    print("waiting for the rung; after Ctrl-C its jobs go on, and the same command continues the search", flush=True)
    while True:
        overviews, silence = read_status(sweep.folder)
        states = {state.path.name: state for state in overviews}
        if not silence and not still_active(names, states):  # a controller that does not answer may restart
            return states
        time.sleep(_POLL_S)


def _submit_runs(sweep: Sweep, cluster: ClusterConfig, *, dry_run: bool, extend: bool = False) -> Submitted:
    """Submit the runs of a sweep that are due; see `submit_sweep`."""
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
            failed, was_stopped = run_locally(sweep, submissions, cluster)
            return Submitted(sweep, cluster, failed, is_complete=not was_stopped)

        def announce(jobs: list[str]) -> None:
            arrays = list(dict.fromkeys(job.partition("_")[0] for job in jobs))
            named = f"job{'s' if len(arrays) > 1 else ''} {', '.join(arrays)}"
            print(f"\nsubmitted {counted(len(jobs), 'run')} as {named}; see: fusionseg status {sweep.folder}")
            sys.stdout.flush()

        submit(sweep, submissions, cluster, announce)
    return Submitted(sweep, cluster, is_queued=True)
