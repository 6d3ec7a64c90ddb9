"""The command `compare`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fusionseg.commands.base import Commands, add_command, loading
from fusionseg.commands.results.options import runs_arguments
from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import DONE


def add_compare(commands: Commands) -> None:
    parser = add_command(
        commands,
        "compare",
        "one table over runs: a row for each configuration, mean and spread over its seeds and folds",
        """fusionseg compare runs/unets
  fusionseg compare runs/table2 --rows name --metrics parameters "dice (files)" "hd95_mm (files)"
  fusionseg compare runs/few_labels --rows name --metrics "dice (files)" --against scratch
  fusionseg compare runs/views --ensembles
  fusionseg compare runs/table2 --rows name --latex > table2.tex
  fusionseg compare runs/table2 --output paper --plots""",
        _compare,
    )
    runs_arguments(parser, "values")
    parser.add_argument(
        "--rows",
        default="settings",
        choices=("settings", "name"),
        help="what a row shows of its runs: the settings in which the rows differ (default), or the name of the runs"
        " without seed and fold",
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="METRIC",
        help='columns to show, in this order, such as parameters "dice (files)"; a name without its grid stands for all'
        " its grids (default: all columns)",
    )
    parser.add_argument(
        "--against",
        metavar="NAME",
        help="also the differences from these runs, seed by seed and fold by fold, with an interval; NAME is the name"
        " of the runs without seed and fold, such as scratch for scratch-seed0",
    )
    parser.add_argument("--latex", action="store_true", help="print LaTeX (package booktabs) instead of Markdown")
    parser.add_argument(
        "--plots",
        action="store_true",
        help="draw learning curves, and the score against the cost, as PNG and SVG in the folder figures of --output",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="write compare.md, compare.csv and compare.tex there too"
    )


def _compare(arguments: argparse.Namespace) -> int:
    with loading():
        from fusionseg.inference.comparison.figures import draw_figures
        from fusionseg.inference.comparison.layout import with_metrics, with_names
        from fusionseg.inference.comparison.paired import with_baseline
        from fusionseg.inference.comparison.rows import compare
        from fusionseg.inference.comparison.table import comparison_latex, comparison_markdown, write_comparison
        from fusionseg.utils.files import writable_folder

    if arguments.plots and arguments.output is None:
        raise UserError("--plots: has no folder for the files; add --output FOLDER")
    if arguments.output is not None:
        writable_folder(arguments.output, "--output")
    comparison = compare(
        arguments.runs,
        arguments.checkpoint,
        ensembles=arguments.ensembles,
        postprocessed=arguments.postprocessed,
    )
    if arguments.metrics:
        comparison = with_metrics(comparison, arguments.metrics)
    if arguments.against is not None:
        comparison = with_baseline(comparison, arguments.against)
    by_settings = comparison  # the figures tell rows with equal names apart by their settings
    if arguments.rows == "name":
        comparison = with_names(comparison)
    print(comparison_latex(comparison) if arguments.latex else comparison_markdown(comparison))
    if arguments.output is not None:
        write_comparison(comparison, arguments.output)
    if arguments.plots:
        for file in draw_figures(by_settings, arguments.output):
            print(file)
    return DONE
