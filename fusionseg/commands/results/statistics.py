"""The command `statistics`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fusionseg.commands.base import Commands, add_command, loading
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


def runs_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `statistics` and `best` share: the runs, and which of their evaluations count.

    Args:
        parser: the parser of the command.
    """
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN|FOLDER", help="run folder, or a folder of them")
    parser.add_argument(
        "--checkpoint",
        default="last",
        choices=("last", "best"),
        help="evaluations of each run's last step, or of its best validation, which was chosen on the same cases"
        " (default last)",
    )
    parser.add_argument(
        "--ensembles", action="store_true", help="add rows of the ensembles that fusionseg evaluate --with has scored"
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
    pooled = pool(compare(arguments.runs, arguments.checkpoint, ensembles=arguments.ensembles))
    found = analyse(pooled, arguments.against)
    print(statistics_markdown(found, arguments.metrics))
    if folder is not None:
        write_statistics(found, pooled, folder, arguments.metrics)
        print(f"\n{folder}: statistics.json, .md, .csv and .tex, and pooled.csv with the score of each case")
    return DONE


def output_folder(runs: list[Path], output: Path | None) -> Path | None:
    """The folder for the files of a command about runs: the given one, else the only folder of runs; None without both.

    Args:
        runs: the arguments of the command.
        output: the value of `--output`.
    """
    from fusionseg.runs.paths import is_run_folder

    return output if output is not None or len(runs) > 1 or is_run_folder(runs[0]) else runs[0]
