"""The command `best`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fusionseg.commands.base import Commands, add_command, loading
from fusionseg.commands.results.options import output_folder, runs_arguments
from fusionseg.utils.exit_status import DONE


def add_best(commands: Commands) -> None:
    parser = add_command(
        commands,
        "best",
        "the best configuration of a sweep on pooled cross-validation, and the command that predicts with it",
        "fusionseg best runs/hippocampus_folds\n  fusionseg best runs/hippocampus_folds --metric hd95_mm",
        _best,
    )
    runs_arguments(parser, postprocessed=False)
    parser.add_argument(
        "--metric",
        default="dice",
        metavar="METRIC",
        help="by its name in evaluations, such as hd95_mm (default dice)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="write best.json there (default: into the folder of the runs, if one such folder is given)",
    )


def _best(arguments: argparse.Namespace) -> int:
    with loading("libraries"):
        from fusionseg.inference.comparison.rows import compare
        from fusionseg.inference.statistics.best import best_text, choose
        from fusionseg.inference.statistics.files import write_best
        from fusionseg.inference.statistics.pooled import pool
        from fusionseg.utils.files import writable_folder

    folder = output_folder(arguments.runs, arguments.output)
    if folder is not None:
        writable_folder(folder, "--output")
    comparison = compare(arguments.runs, arguments.checkpoint, ensembles=arguments.ensembles, postprocessed=True)
    pooled = pool(comparison)
    choices, problems = choose(pooled, arguments.metric)
    print(best_text(choices))
    for note in (*pooled.notes, *problems):
        print(f"- {note}")
    if folder is not None:
        write_best(choices, folder)
    return DONE
