"""What a submission would do with each run of a sweep: start it, continue it, or leave it alone."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass

from fusionseg.engine.batch import accumulation, batch_arithmetic
from fusionseg.engine.run_folder import RunFolder
from fusionseg.errors import UserError
from fusionseg.inference.table import markdown_table
from fusionseg.jobs.cluster import ClusterConfig
from fusionseg.jobs.ledger import last_end, last_job, last_records, read_events
from fusionseg.jobs.slurm import is_active, job_states
from fusionseg.jobs.sweep import Sweep, SweepRun


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
    problems: dict[str, None] = {}
    for run in sweep.runs:
        for check in (lambda run: accumulation(run.config, cluster.world_size), _check_folder):
            try:
                check(run)
            except UserError as error:
                problems.update(dict.fromkeys(error.problems))
    if problems:
        raise UserError(problems)
    jobs = {run.config.name: job for run in sweep.runs if (job := last_job(read_events(run.folder)))}
    states = job_states(jobs.values())
    return [_decide(run, jobs.get(run.config.name), states) for run in sweep.runs]


def describe(planned: list[Planned], cluster: ClusterConfig) -> str:
    """The plan as a table."""
    rows = [["run", "what", "because", "steps", "batch"]]
    for entry in planned:
        config = entry.run.config
        batch = batch_arithmetic(config, cluster.world_size)
        rows.append([config.name, entry.action, entry.why, str(config.train.steps), batch])
    return markdown_table(rows)


def _check_folder(run: SweepRun) -> None:
    RunFolder(run.config).check(run.config)


def _decide(run: SweepRun, job: str | None, states: dict[str, str]) -> Planned:
    end = last_end(run.folder)
    if end is not None and end["status"] in ("completed", "plateau"):
        return Planned(run, "skip", f"{end['status']} at step {end['step']}")
    if job is not None and is_active(states.get(job, "GONE")):
        return Planned(run, "skip", f"is job {job}, {states[job]}")
    if _is_locked(run):
        return Planned(run, "skip", "is being trained")
    if any((run.folder / "checkpoints").glob("step_*.pt")):
        records = last_records(run.folder)
        step = max((record["step"] for record in records.values()), default=0)
        return Planned(run, "continue", f"left at step {step}" + (f" ({end['reason']})" if end else ""))
    return Planned(run, "start", "new")


def _is_locked(run: SweepRun) -> bool:
    try:
        with (run.folder / ".lock").open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    return False
