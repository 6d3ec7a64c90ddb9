"""What a submission would do with each run of a sweep: start it, continue it, or leave it alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fusionseg.cluster.network_sizes import network_sizes, size_remarks, size_text
from fusionseg.cluster.profile import ClusterConfig
from fusionseg.cluster.slurm import folder_problems, is_active, job_states
from fusionseg.cluster.sweep import Sweep, SweepRun
from fusionseg.config import RunConfig
from fusionseg.config.yaml_location import dump_yaml
from fusionseg.data.preprocessing.prepare import store_folder
from fusionseg.distributed.batch_arithmetic import accumulation_steps, batch_arithmetic
from fusionseg.runs.cases import open_run
from fusionseg.runs.datasets import open_sources
from fusionseg.runs.folder import RunFolder
from fusionseg.runs.job_events import last_job, read_events
from fusionseg.runs.paths import checkpoints_of
from fusionseg.runs.records import has_finished, last_end, last_records
from fusionseg.utils.errors import UserError
from fusionseg.utils.folder_lock import is_held
from fusionseg.utils.tables import markdown_table


@dataclass(frozen=True)
class Planned:
    """A run, and what is to be done with it."""

    run: SweepRun
    action: str
    """start, continue, or skip."""
    why: str

    @property
    def is_due(self) -> bool:
        return self.action != "skip"


def plan(sweep: Sweep, cluster: ClusterConfig) -> list[Planned]:
    """Look at the run folders and the queue.

    Raises:
        UserError: with all problems: a batch that the ranks cannot share out, a folder that holds another run.
    """
    problems: dict[str, None] = dict.fromkeys(folder_problems(sweep.folder) if cluster.cluster == "slurm" else ())
    stores: dict[str, RunConfig] = {}
    runs: list[SweepRun] = []
    for run in sweep.runs:
        try:
            accumulation_steps(run.config, cluster.world_size)
            run = replace(run, config=_share_store(run.config, sweep.folder.parent, stores))
            RunFolder(run.folder).check(run.config)
        except UserError as error:
            problems.update(dict.fromkeys(error.problems))
        runs.append(run)
    if problems:
        raise UserError(problems)
    jobs = {run.config.name: job for run in runs if (job := last_job(read_events(run.folder)))}
    states = job_states(jobs.values())
    planned = [_decide(run, jobs.get(run.config.name), states) for run in runs]
    _check_cases([entry.run for entry in planned if entry.is_due])
    return planned


def _check_cases(runs: Sequence[SweepRun]) -> None:
    """Refuse runs that could not start: their own cases are gone, or `init_from` was trained on validation cases.

    Raises:
        UserError: with all problems of all runs.
    """
    problems: dict[str, None] = {}
    for run in runs:
        folder = RunFolder(run.folder)
        if run.config.init_from is None and not folder.has_checkpoints():
            continue  # its data set has been opened already
        try:
            open_run(run.config, folder, planned=True)
        except UserError as error:
            problems.update(dict.fromkeys(f"{run.config.name}: {problem}" for problem in error.problems))
    if problems:
        raise UserError(problems)


def describe(planned: list[Planned], cluster: ClusterConfig) -> str:
    """The plan as a table, and what each run takes."""
    runs = [entry.run for entry in planned]
    sizes = network_sizes(runs)
    rows = [["run", "sets", "what", "because", "parameters", "steps", "batch"]]
    for entry in planned:
        config = entry.run.config
        batch = batch_arithmetic(config, cluster.world_size)
        sets = ", ".join(f"{key}={value}" for key, value in entry.run.settings.items())
        size = size_text(sizes[config.name])
        rows.append([config.name, sets or "-", entry.action, entry.why, size, str(config.train.steps), batch])
    gpus = cluster.gpus_per_node
    device = f"{gpus} GPU{'s' if gpus > 1 else ''}" if gpus else "no GPU"
    ranks = f"{cluster.ranks_per_node} rank{'s' if cluster.ranks_per_node > 1 else ''}"
    if cluster.cluster == "local":
        where = f"on this machine, with {device} and {ranks}"
    else:
        where = (
            f"nodes {cluster.nodes}, with {device} and {ranks} each, {cluster.cpus_per_task} CPUs a rank; at most"
            f" {cluster.parallel} runs at a time"
        )
    return "\n".join([markdown_table(rows), "", f"each run: {where}", *size_remarks(runs, sizes)])


def _share_store(config: RunConfig, output: Path, known: dict[str, RunConfig]) -> RunConfig:
    """The configuration with its data prepared where other runs beside the sweep have theirs, not once for each sweep.

    Raises:
        UserError: the data set is not there, or is not one.
    """
    key = dump_yaml({"data": config.to_dict()["data"], "labels": config.pretrain is None})
    if key not in known:
        sources = open_sources(config)
        elsewhere = [source.config.model_copy(update={"output": str(output)}) for source in sources]
        folders = [str(store_folder(one, source.dataset)) for one, source in zip(elsewhere, sources, strict=True)]
        also = tuple(
            part.model_copy(update={"prepared": folder})
            for part, folder in zip(config.data.also, folders[1:], strict=True)
        )
        data = config.data.model_copy(update={"prepared": folders[0], "also": also})
        known[key] = config.model_copy(update={"data": data})
    return config.model_copy(update={"data": known[key].data})


def _decide(run: SweepRun, job: str | None, states: dict[str, str]) -> Planned:
    end = last_end(run.folder)
    if end is not None and has_finished(end["status"]):
        return Planned(run, "skip", f"{end['status']} at step {end['step']}")
    if job is not None and is_active(states.get(job, "GONE")):
        return Planned(run, "skip", f"is job {job}, {states[job]}")
    if is_held(run.folder):
        return Planned(run, "skip", "is being trained")
    if checkpoints_of(run.folder):
        records = last_records(run.folder)
        step = max((record["step"] for record in records.values()), default=0)
        return Planned(run, "continue", f"left at step {step}" + (f" ({end['reason']})" if end else ""))
    return Planned(run, "start", "new")
