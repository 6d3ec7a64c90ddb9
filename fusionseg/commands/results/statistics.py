"""The command `statistics`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fusionseg.commands.base import Commands, add_command, loading
from fusionseg.commands.results.options import output_folder, runs_arguments
from fusionseg.utils.exit_status import DONE


def add_statistics(commands: Commands) -> None:
    parser = add_command(
        commands,
        "statistics",
        "pooled cross-validation over runs that were evaluated: intervals, paired tests, ranks; Markdown, CSV, LaTeX,"
        " JSON",
        """fusionseg statistics runs/hippocampus_folds
  fusionseg statistics runs/hippocampus_folds --against unet
  fusionseg statistics runs/hippocampus_folds --metrics dice nsd --output paper""",
        _statistics,
    )
    runs_arguments(parser)
    parser.add_argument(
        "--against",
        metavar="NAME",
        help="also a paired test of every other row against these runs, case by case; NAME is the name of the runs"
        " without seed and fold, such as unet for unet-fold0",
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="METRIC",
        help="metrics of the tables, by their names in evaluations (default: dice, hd95_mm and nsd); JSON and CSV have"
        " all",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="write the files there (default: into the folder of the runs, if one such folder is given)",
    )


def _statistics(arguments: argparse.Namespace) -> int:
    with loading("libraries"):
        from fusionseg.inference.comparison.rows import compare
        from fusionseg.inference.statistics.analysis import analyse
        from fusionseg.inference.statistics.files import write_statistics
        from fusionseg.inference.statistics.pooled import pool
        from fusionseg.inference.statistics.tables import statistics_markdown
        from fusionseg.utils.files import writable_folder

    folder = output_folder(arguments.runs, arguments.output)
    if folder is not None:
        writable_folder(folder, "--output")
    comparison = compare(
        arguments.runs,
        arguments.checkpoint,
        ensembles=arguments.ensembles,
        postprocessed=arguments.postprocessed,
    )
    pooled = pool(comparison)
    found = analyse(pooled, arguments.against)
    print(statistics_markdown(found, arguments.metrics))
    if folder is not None:
        write_statistics(found, pooled, folder, arguments.metrics)
        print(f"\n{folder}: statistics.json, .md, .csv and .tex, and pooled.csv with the score of each case")
    return DONE
