"""Commands about sweeps, their jobs and the machine: `submit`, `status`, `cancel` and `doctor`."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from fusionseg.commands.base import Commands, add_command, add_trust, loading
from fusionseg.runs.continuation.changes import EXTEND
from fusionseg.utils.exit_status import DONE, FAILED
from fusionseg.utils.streams import reader_has_left
from fusionseg.utils.tables import printable


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
    parser.add_argument(
        EXTEND, action="store_true", help="runs go on with changed settings, such as train.steps, also finished ones"
    )


def _submit(arguments: argparse.Namespace) -> int:
    with loading():
        from fusionseg.commands.submission import submit_sweep

    submitted = submit_sweep(
        arguments.sweep, arguments.cluster, arguments.overrides, dry_run=arguments.dry_run, extend=arguments.extend
    )
    return FAILED if submitted.failed else DONE


def add_status(commands: Commands) -> None:
    parser = add_command(
        commands,
        "status",
        "show the state of the runs in a folder: step, score, speed, restarts, and the reason of their end; of one run"
        " also where its time went, its starts, and the next command",
        "fusionseg status runs/table2 --watch 10\n  fusionseg status runs/table2/unet_fold0",
        _status,
    )
    parser.add_argument("folder", type=Path, help="folder of a sweep, or of a run")
    parser.add_argument(
        "--watch", nargs="?", const=10.0, type=float, metavar="SECONDS", help="show it again and again (default 10)"
    )
    add_trust(parser)


def _status(arguments: argparse.Namespace) -> int:
    from fusionseg.cluster.search.results import search_table
    from fusionseg.cluster.status import read_status, to_text
    from fusionseg.commands.run_page import account_text
    from fusionseg.runs.paths import is_run_folder

    while True:
        runs, remark = read_status(arguments.folder)
        text = to_text(runs, remark)
        if table := search_table(arguments.folder):
            text += f"\n\nthe search, the best first:\n{table}"
        if is_run_folder(arguments.folder):
            text += "\n\n" + account_text(arguments.folder, is_running=runs[0].state in ("running", "RUNNING"))
        if arguments.watch is None:
            print(printable(text))
            return FAILED if any(run.has_failed for run in runs) else DONE
        print("\033[H\033[2J" + printable(text), flush=True)
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
        "one page about this machine or allocation, with remedies; under srun or torchrun a line for each rank; or the"
        " known troubles of a run",
        "fusionseg doctor --folder /scratch/runs\n  fusionseg doctor runs/unet\n"
        "  srun --nodes=2 --ntasks-per-node=4 --gres=gpu:4 fusionseg doctor --folder /scratch/runs",
        _doctor,
    )
    parser.add_argument(
        "run",
        type=Path,
        nargs="?",
        help="a run folder: look for known troubles in its records, history and log",
    )
    parser.add_argument("--folder", type=Path, default=Path(), help="folder of the runs (default: this folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings as JSON too")
    add_trust(parser)


def _doctor(arguments: argparse.Namespace) -> int:
    if arguments.run is not None:
        return _doctor_of_run(arguments)
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


def _doctor_of_run(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from fusionseg.commands.run_page import troubles_text
    from fusionseg.runs.accounts.findings import find_troubles
    from fusionseg.runs.paths import is_run_folder
    from fusionseg.utils.errors import UserError
    from fusionseg.utils.files import writable_file, write_json

    if not is_run_folder(arguments.run):
        raise UserError(f"{arguments.run}: is no run folder: give the folder that a training wrote, or leave it out")
    if arguments.json is not None:
        writable_file(arguments.json, "--json")
    troubles = find_troubles(arguments.run)
    print(printable(troubles_text(troubles)) if troubles else f"{arguments.run}: no known trouble was found")
    if arguments.json is not None:
        write_json(arguments.json, {"troubles": [asdict(trouble) for trouble in troubles]})
    return FAILED if troubles else DONE
