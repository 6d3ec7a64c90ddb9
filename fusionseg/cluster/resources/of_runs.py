"""Runs of a sweep whose resources differ from those of its cluster profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fusionseg.cluster.profile import ClusterConfig, read_cluster
from fusionseg.cluster.sweep import MAX_NAMED, Sweep, SweepRun, overlap
from fusionseg.cluster.sweep_file import PROFILE
from fusionseg.config.override import Override
from fusionseg.config.shipped.lookup import shown_path
from fusionseg.utils.errors import UserError, some_of


def with_resources(sweep: Sweep, profile: str | Path, cluster: ClusterConfig, overrides: Sequence[str]) -> Sweep:
    """Give each run that has resources of its own (`cluster.KEY` in the sweep's file) its cluster profile.

    On this machine (`cluster: local`) all runs have the resources of the profile, so that a sweep can be tried there.

    Args:
        sweep: the sweep.
        profile: the file or the name of the cluster profile.
        cluster: that profile, with the overrides.
        overrides: `key=value` settings of the command line for the profile; they win over those of `set`.

    Raises:
        UserError: with all problems of all runs' resources.
    """
    if cluster.cluster == "local":
        return sweep
    shown = shown_path(sweep.file)
    problems: dict[str, list[str]] = {
        f"command line: {PROFILE}.{text}: varies in {shown}: change it there": []
        for text in overrides
        if any(keys and overlap(tuple(text.partition("=")[0].split(".")), keys) for keys in sweep.varied_resources)
    }
    runs: list[SweepRun] = []
    known: dict[str, ClusterConfig] = {}
    for run in sweep.runs:
        key = repr([(override.keys, override.value) for override in run.resources])
        try:
            if run.resources and key not in known:
                known[key] = _resolve(sweep, run.resources, profile, overrides)
        except UserError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(run.config.name)
        runs.append(replace(run, cluster=known.get(key)))
    if problems:
        raise UserError(
            [f"{text} [{some_of(names, MAX_NAMED)}]" if names else text for text, names in problems.items()]
        )
    return replace(sweep, runs=runs)


def _resolve(
    sweep: Sweep, resources: Sequence[Override], profile: str | Path, overrides: Sequence[str]
) -> ClusterConfig:
    """The cluster profile of a run: another one if the run names it, with the run's keys and the command line's."""
    own = [override for override in resources if override.keys]
    named = [override for override in resources if not override.keys]
    if not named:
        return _checked(read_cluster(profile, overrides, under=own))
    *_, chosen = named
    try:
        return _checked(read_cluster(chosen.value, overrides, under=own, folder=sweep.file.parent))
    except UserError as error:
        if any("there is no such" in problem for problem in error.problems):
            raise UserError([f"{PROFILE} ({chosen.location}): {problem}" for problem in error.problems]) from None
        raise


def _checked(cluster: ClusterConfig) -> ClusterConfig:
    if cluster.cluster == "local":
        raise UserError(f"{PROFILE}: a run on this machine among runs of SLURM: name a profile that has cluster: slurm")
    return cluster


def by_resources(runs: Sequence[SweepRun], cluster: ClusterConfig) -> list[tuple[ClusterConfig, list[SweepRun]]]:
    """Group runs by their cluster profile, in the order of the runs.

    Args:
        runs: runs of a sweep.
        cluster: the profile of the runs without one of their own.
    """
    groups: list[tuple[ClusterConfig, list[SweepRun]]] = []
    for run in runs:
        own = run.cluster or cluster
        members = next((members for known, members in groups if known == own), None)
        if members is None:
            groups.append((own, [run]))
        else:
            members.append(run)
    return groups
