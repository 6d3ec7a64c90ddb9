"""The submission of a sweep, as `submit` and `table` make it: decide, print, and train or queue the runs."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionseg.cluster.local import check_devices, run_locally
from fusionseg.cluster.profile import ClusterConfig, load_cluster
from fusionseg.cluster.resources.arrays import max_array_size, plan_arrays
from fusionseg.cluster.resources.of_runs import with_resources
from fusionseg.cluster.resources.time_limit import time_limit_warnings
from fusionseg.cluster.search.brackets import best_of, finalists_of, next_points
from fusionseg.cluster.search.halving import Search, open_search, still_active
from fusionseg.cluster.search.results import search_table
from fusionseg.cluster.search.tpe import check_optuna
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

    def load(points: Sequence[Mapping[str, Any]] | None = None) -> Sweep:
        return with_resources(load_sweep(file, of_runs, points), profile, cluster, of_profile)

    sweep = load()
    _refuse_kubernetes(sweep, cluster, file, profile)
    if sweep.search is not None:
        if extend:
            raise UserError(f"{sweep.folder}: a search cannot be extended; choose another name for the sweep")
        check_optuna(sweep.search)
        return _search(sweep, cluster, load, dry_run=dry_run)
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


def _search(
    sweep: Sweep, cluster: ClusterConfig, load: Callable[[list[dict[str, Any]]], Sweep], *, dry_run: bool
) -> Submitted:
    """Submit the runs of one rung of a search after the other, and wait for them; see `submit_sweep`.

    Args:
        sweep: the sweep with the first bracket, which is the whole search if its sampler does not learn.
        cluster: the cluster profile.
        load: loads the sweep with the points of a further bracket.
        dry_run: see `submit_sweep`.

    Returns:
        The runs of the last rungs, or of the rung that is not done.
    """
    done: list[Search] = []
    points: list[dict[str, Any]] = []
    while not done or points:
        search = open_search(load(points) if points else sweep, len(done))
        if points and not dry_run:
            search.write()  # another version of Optuna might propose other points
        search, submitted = _halve(search, cluster, dry_run=dry_run)
        if not search.is_done:
            return submitted
        done.append(search)
        points = next_points(done)
    print(f"\n{search_table(sweep.folder)}")
    best = best_of(done)
    if best is None:
        raise UserError(f"{sweep.folder}: no run of the search has a score: see fusionseg status {sweep.folder}")
    print(f"\nthe best: {sweep.folder / best}")
    return Submitted(finalists_of(done), cluster, submitted.failed)


def _halve(search: Search, cluster: ClusterConfig, *, dry_run: bool) -> tuple[Search, Submitted]:
    """Train the rungs of a bracket; return it as far as it is decided, and the runs of the last rung."""
    folder = search.sweep.folder
    submitted = Submitted(search.finalists(), cluster)
    while not search.is_done:
        part = search.part()
        print(f"{'' if dry_run else chr(10)}{search.title}: {counted(len(part.runs), 'run')}")
        submitted = _submit_runs(part, cluster, dry_run=dry_run)
        if dry_run or not submitted.is_complete:
            return search, submitted
        names = [run.config.name for run in part.runs]
        states = _wait(part, names) if submitted.is_queued else _states(part)
        search, left = search.decided(states)
        if left:
            print(f"\n{folder}: {some_of(left)}: not at the end of the rung yet; the same command goes on")
            return search, Submitted(part, cluster, submitted.failed, submitted.is_queued, is_complete=False)
    return search, submitted


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
