"""Submissions: each run of a sweep, and the decision to start it, to continue it, or to skip it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fusionseg.cluster.network_sizes import network_sizes, size_remarks, size_text
from fusionseg.cluster.profile import ClusterConfig
from fusionseg.cluster.resources.of_runs import by_resources
from fusionseg.cluster.slurm import folder_problems, is_active, job_states
from fusionseg.cluster.sweep import MAX_NAMED, Sweep, SweepRun
from fusionseg.cluster.sweep_file import PROFILE
from fusionseg.config import RunConfig
from fusionseg.config.yaml_location import dump_yaml
from fusionseg.data.preprocessing.prepare import store_folder
from fusionseg.distributed.batch_arithmetic import batch_arithmetic, check_batch
from fusionseg.runs.cases.datasets import open_run_datasets
from fusionseg.runs.cases.opening import open_cases
from fusionseg.runs.continuation.changes import Continuation
from fusionseg.runs.continuation.extension import changes_since
from fusionseg.runs.folder import RunFolder
from fusionseg.runs.job_events import last_job, read_events
from fusionseg.runs.paths import checkpoints_of, last_step
from fusionseg.runs.records import RunStatus, has_finished, last_end, last_records
from fusionseg.utils.errors import UserError, some_of
from fusionseg.utils.locks.folder_lock import is_held
from fusionseg.utils.tables import counted, markdown_table


@dataclass(frozen=True)
class Submission:
    """A run of a sweep, and the decision to start, continue or skip it."""

    run: SweepRun
    action: str
    """start, continue or skip."""
    reason: str

    @property
    def is_due(self) -> bool:
        """True if the run is to be trained."""
        return self.action != "skip"


def decide_submissions(sweep: Sweep, cluster: ClusterConfig, *, extend: bool = False) -> list[Submission]:
    """Decide about each run of a sweep, from the run folders and SLURM's queue.

    Args:
        sweep: the sweep with its runs.
        cluster: the cluster profile.
        extend: runs whose configuration has changed go on with it, also finished ones.

    Raises:
        UserError: with all problems, such as a batch that cannot be divided over the ranks, or a folder that holds a
            run of another configuration.
    """
    problems: dict[str, None] = dict.fromkeys(folder_problems(sweep.folder) if cluster.cluster == "slurm" else ())
    stores: dict[str, RunConfig] = {}
    runs: list[SweepRun] = []
    for run in sweep.runs:
        try:
            check_batch(run.config, (run.cluster or cluster).world_size)
            run = replace(run, config=_share_store(run.config, sweep.folder.parent, stores))
            folder = RunFolder(run.folder)
            word = Continuation(extend=extend and folder.has_checkpoints())
            folder.check(run.config, "choose another output", word)
        except UserError as error:
            problems.update(dict.fromkeys(error.problems))
        runs.append(run)
    if problems:
        raise UserError(problems)
    jobs = {run.config.name: job for run in runs if (job := last_job(read_events(run.folder)))}
    states = job_states(jobs.values())
    submissions = [_decide(run, jobs.get(run.config.name), states) for run in runs]
    _check_cases([submission.run for submission in submissions if submission.is_due])
    return submissions


def _check_cases(runs: Sequence[SweepRun]) -> None:
    """Refuse runs that could not start: their cases are missing, or `init_from` was trained on validation cases.

    Raises:
        UserError: with all problems of all runs.
    """
    problems: dict[str, None] = {}
    for run in runs:
        folder = RunFolder(run.folder)
        if run.config.start_weights is None and not folder.has_checkpoints():
            continue  # the run needs nothing but its data set, which `_share_store` has opened
        try:
            open_cases(run.config, folder, planned=True)
        except UserError as error:
            problems.update(dict.fromkeys(f"{run.config.name}: {problem}" for problem in error.problems))
    if problems:
        raise UserError(problems)


def submissions_table(submissions: list[Submission], cluster: ClusterConfig) -> str:
    """Format the submissions as a table, followed by the resources of each run and remarks on the networks' sizes.

    Args:
        submissions: the decisions about all runs of the sweep.
        cluster: the cluster profile.
    """
    runs = [submission.run for submission in submissions]
    sizes = network_sizes(runs)
    rows = [["run", "sets", "what", "because", "parameters", "steps", "batch"]]
    for submission in submissions:
        config = submission.run.config
        batch = batch_arithmetic(config, (submission.run.cluster or cluster).world_size)
        sets = ", ".join(f"{key}={value}" for key, value in submission.run.settings.items())
        size = size_text(sizes[config.name])
        rows.append(
            [config.name, sets or "-", submission.action, submission.reason, size, str(config.train.steps), batch]
        )
    return "\n".join([markdown_table(rows), "", *_resource_lines(runs, cluster), *size_remarks(runs, sizes)])


def _resource_lines(runs: Sequence[SweepRun], cluster: ClusterConfig) -> list[str]:
    """A line for each set of resources, with its runs if there are several sets."""
    groups = by_resources(runs, cluster)
    if len(groups) == 1:
        lines = [f"each run: {_resources(groups[0][0])}"]
    else:
        lines = [
            f"{some_of([run.config.name for run in members], MAX_NAMED)}: {_resources(own)}" for own, members in groups
        ]
    if cluster.cluster == "local" and any(run.resources for run in runs):
        lines.append(f"the resources of the sweep's file ({PROFILE}.KEY) are for SLURM, and have no effect here")
    return lines


def _resources(cluster: ClusterConfig) -> str:
    gpus = cluster.gpus_per_node
    device = counted(gpus, "GPU") if gpus else "no GPU"
    ranks = counted(cluster.ranks_per_node, "rank")
    if cluster.cluster == "local":
        return f"on this machine, with {device} and {ranks}"
    partition = f"partition {cluster.partition}, " if cluster.partition else ""
    return (
        f"{partition}nodes {cluster.nodes}, with {device} and {ranks} each, {counted(cluster.cpus_per_task, 'CPU')} a"
        f" rank, {cluster.time}; at most {counted(cluster.parallel, 'run')} at a time"
    )


def _share_store(config: RunConfig, output: Path, known: dict[str, RunConfig]) -> RunConfig:
    """Prepare the data of a sweep's runs in the folder of runs without a sweep, so that all sweeps share the cases.

    Args:
        config: the configuration of a run of the sweep.
        output: the folder that holds the folders of sweeps.
        known: a configuration with these folders for each data set seen so far; new data sets are added to it.

    Raises:
        UserError: the data set does not exist, or cannot be opened.
    """
    key = dump_yaml({"data": config.to_dict()["data"], "labels": config.task_info.needs_labels})
    if key not in known:
        folders = [str(store_folder(one.data, str(output), one.dataset)) for one in open_run_datasets(config)]
        also = tuple(
            part.model_copy(update={"prepared": folder})
            for part, folder in zip(config.data.also, folders[1:], strict=True)
        )
        data = config.data.model_copy(update={"prepared": folders[0], "also": also})
        known[key] = config.model_copy(update={"data": data})
    return config.model_copy(update={"data": known[key].data})


def _decide(run: SweepRun, job: str | None, states: dict[str, str]) -> Submission:
    """Decide about a run.

    Args:
        job: ID of the run's last job; None if it has none.
        states: the state of each job that SLURM remembers, by job ID.
    """
    end = last_end(run.folder)
    changes = changes_since(run.folder, run.config)
    if end is not None and has_finished(end["status"]) and not changes:
        return Submission(run, "skip", f"{end['status']} at step {end['step']}")
    if end is not None and end["status"] == RunStatus.STOPPED and end["step"] >= (run.config.stop.at or math.inf):
        return Submission(run, "skip", end["reason"])
    if job is not None and is_active(states.get(job, "GONE")):
        return Submission(run, "skip", f"is job {job}, {states[job]}")
    if is_held(run.folder):
        return Submission(run, "skip", "is being trained")
    if changes:
        return Submission(run, "continue", f"extended from step {last_step(run.folder)}: {some_of(changes)}")
    if checkpoints_of(run.folder):
        records = last_records(run.folder)
        step = max((record["step"] for record in records.values()), default=0)
        return Submission(run, "continue", f"left at step {step}" + (f" ({end['reason']})" if end else ""))
    return Submission(run, "start", "new")
