"""Commands about sweeps, their jobs and the machine: `submit`, `status`, `cancel` and `doctor`."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

from fusionseg.commands.base import Commands, add_command, loading
from fusionseg.utils.exit_status import DONE, FAILED
from fusionseg.utils.streams import reader_has_left


def add_submit(commands: Commands) -> None:
    parser = add_command(
        commands,
        "submit",
        "submit all runs of a sweep to SLURM, or run them on this machine; finished and queued runs are skipped",
        "fusionseg submit table2 --cluster t4 data.root=/data/PARSE output=/scratch/runs",
        _submit,
    )
    parser.add_argument("sweep", help="YAML file of the sweep, or the name of a shipped one")
    parser.add_argument(
        "--cluster",
        required=True,
        metavar="FILE|NAME",
        help="cluster profile: a YAML file, or the name of a shipped one",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="for all runs; cluster.KEY=value is for the profile"
    )
    parser.add_argument("--dry-run", action="store_true", help="print every run and the batch script; submit nothing")


def _submit(arguments: argparse.Namespace) -> int:
    with loading():
        from fusionseg.cluster.local import check_devices, run_locally
        from fusionseg.cluster.profile import load_cluster
        from fusionseg.cluster.submission import decide_submissions, submissions_table
        from fusionseg.cluster.submit import check_submission, only_one, sbatch_text, submit
        from fusionseg.cluster.sweep import load_sweep

    prefix = "cluster."
    own = [text.removeprefix(prefix) for text in arguments.overrides if text.startswith(prefix)]
    cluster = load_cluster(arguments.cluster, own)
    sweep = load_sweep(arguments.sweep, [text for text in arguments.overrides if not text.startswith(prefix)])
    submissions = decide_submissions(sweep, cluster)
    due = sum(submission.is_due for submission in submissions)
    print(f"{sweep.folder}: {len(submissions)} runs, {due} to {'do' if arguments.dry_run else 'submit'}\n")
    print(submissions_table(submissions, cluster))
    if not due:
        return DONE
    local = cluster.cluster == "local"
    if arguments.dry_run and not local:
        print(f"\n{sbatch_text(sweep, cluster, due)}")
    no_slurm = arguments.dry_run and not local and shutil.which("sinfo") is None
    if local:
        check_devices(cluster)
    check_submission(sweep, cluster, due, ask=not local and not no_slurm)
    if no_slurm:
        print(
            "\nSLURM is not installed here (no sinfo), so it was not asked: on the login node it may refuse these jobs"
        )
    if arguments.dry_run:
        return DONE
    with only_one(sweep):
        submissions = decide_submissions(sweep, cluster)  # again, since another process may have submitted it meanwhile
        if local:
            return FAILED if run_locally(sweep, submissions, cluster) else DONE

        def announce(jobs: list[str]) -> None:
            print(f"\nsubmitted {len(jobs)} runs as job {jobs[0].split('_')[0]}; see: fusionseg status {sweep.folder}")
            sys.stdout.flush()

        submit(sweep, submissions, cluster, announce)
    return DONE


def add_status(commands: Commands) -> None:
    parser = add_command(
        commands,
        "status",
        "show the state of the runs in a folder: step, score, speed, restarts, and the reason of their end",
        "fusionseg status runs/table2 --watch 10",
        _status,
    )
    parser.add_argument("folder", type=Path, help="folder of a sweep, or of a run")
    parser.add_argument(
        "--watch", nargs="?", const=10.0, type=float, metavar="SECONDS", help="show it again and again (default 10)"
    )


def _status(arguments: argparse.Namespace) -> int:
    from fusionseg.cluster.status import read_status, to_text

    while True:
        runs, remark = read_status(arguments.folder)
        if arguments.watch is None:
            print(to_text(runs, remark))
            return FAILED if any(run.has_failed for run in runs) else DONE
        print("\033[H\033[2J" + to_text(runs, remark), flush=True)
        if not any(run.is_active for run in runs) or reader_has_left():
            return FAILED if any(run.has_failed for run in runs) else DONE
        time.sleep(arguments.watch)


def add_cancel(commands: Commands) -> None:
    parser = add_command(
        commands,
        "cancel",
        "cancel the runs of a sweep; running ones save a checkpoint first, and submitting again continues them",
        "fusionseg cancel runs/table2",
        _cancel,
    )
    parser.add_argument("folder", type=Path, help="folder of a sweep, or of a run")


def _cancel(arguments: argparse.Namespace) -> int:
    from fusionseg.cluster.status import cancel

    jobs = cancel(arguments.folder)
    print(f"cancelled {', '.join(jobs)}; running jobs save a checkpoint first" if jobs else "no job waits or runs")
    return DONE


def add_doctor(commands: Commands) -> None:
    parser = add_command(
        commands,
        "doctor",
        "one page about this machine or allocation, with remedies; under srun or torchrun a line for each rank",
        "fusionseg doctor --folder /scratch/runs\n"
        "  srun --nodes=2 --ntasks-per-node=4 --gres=gpu:4 fusionseg doctor --folder /scratch/runs",
        _doctor,
    )
    parser.add_argument("--folder", type=Path, default=Path(), help="folder of the runs (default: this folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings as JSON too")


def _doctor(arguments: argparse.Namespace) -> int:
    with loading():
        from fusionseg.cluster.doctor import BAD, examine, to_json, to_text
        from fusionseg.distributed.launch import read_launch
        from fusionseg.distributed.world import World
        from fusionseg.utils.files import writable_file, write_json

    if arguments.json is not None and read_launch(os.environ).rank == 0:
        writable_file(arguments.json, "--json")
    world = World.from_environment("auto")
    try:
        findings = examine(arguments.folder, world)
    finally:
        world.close()
    if findings:
        print(to_text(findings))
        if arguments.json is not None:
            write_json(arguments.json, to_json(findings))
    return FAILED if any(finding.verdict == BAD for finding in findings) else DONE
