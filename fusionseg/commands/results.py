"""Commands about trained runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from fusionseg.commands.base import Commands, add_command
from fusionseg.entry import DONE, FAILED
from fusionseg.errors import UserError


def add_evaluate(commands: Commands) -> None:
    parser = add_command(
        commands,
        "evaluate",
        "Dice and HD95 of a run per case and class, in the geometry of the label files; CSV, JSON and a picture",
        "fusionseg evaluate runs/hippocampus_unet",
        _evaluate,
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument(
        "--dataset",
        help="evaluate on all labelled cases of this data set, test cases too, instead of the validation fold",
    )
    parser.add_argument(
        "--with", dest="others", nargs="+", type=Path, default=[], metavar="RUN", help="average with these runs"
    )
    parser.add_argument(
        "--include-trained", action="store_true", help="score cases that were trained on too, and mark the results"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="such as data.root=/where/it/is/now")
    _inference_arguments(parser)


def _evaluate(arguments: argparse.Namespace) -> int:
    from fusionseg.inference.cases import evaluation_config
    from fusionseg.inference.evaluate import evaluate
    from fusionseg.inference.table import evaluation_table

    config = evaluation_config(arguments.run, arguments.overrides)
    result = evaluate(
        arguments.run,
        config,
        _options(arguments),
        dataset_root=arguments.dataset,
        others=arguments.others,
        include_trained=arguments.include_trained,
    )
    print(evaluation_table(result.summary))
    print(f"{result.folder}: cases.csv, summary.json, best_and_worst.png")
    return FAILED if result.failed else DONE


def add_predict(commands: Commands) -> None:
    parser = add_command(
        commands,
        "predict",
        "write masks as NIfTI in each input's own geometry; several runs are an ensemble",
        "fusionseg predict runs/hippocampus_unet --input /data/new_scans --output masks",
        _predict,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, or a checkpoint file")
    parser.add_argument("--input", required=True, type=Path, help="image, or folder of images")
    parser.add_argument("--output", required=True, type=Path, help="folder for the masks")
    parser.add_argument("--skip-existing", action="store_true", help="keep masks that are there already")
    _inference_arguments(parser)


def _predict(arguments: argparse.Namespace) -> int:
    from fusionseg.inference.predict import predict

    failed = predict(
        arguments.runs,
        arguments.input,
        arguments.output,
        _options(arguments),
        skip_existing=arguments.skip_existing,
    )
    return FAILED if failed else DONE


def add_compare(commands: Commands) -> None:
    parser = add_command(
        commands,
        "compare",
        "one table over runs: a row for each configuration, mean and spread over its seeds and folds",
        "fusionseg compare runs/unets",
        _compare,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN|FOLDER", help="run folder, or a folder of them")
    parser.add_argument(
        "--checkpoint",
        default="last",
        choices=("last", "best"),
        help="figures of each run's last step, or of its best validation, which was chosen on the same cases"
        " (default last)",
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write compare.md and compare.csv there too")


def _compare(arguments: argparse.Namespace) -> int:
    from fusionseg.files import writable_folder, write_text
    from fusionseg.inference.compare import compare
    from fusionseg.inference.comparison_table import comparison_csv, comparison_markdown

    if arguments.output is not None:
        writable_folder(arguments.output, "--output")
    comparison = compare(arguments.runs, arguments.checkpoint)
    table = comparison_markdown(comparison)
    print(table)
    if arguments.output is not None:
        write_text(arguments.output / "compare.md", table + "\n")
        write_text(arguments.output / "compare.csv", comparison_csv(comparison))
    return DONE


def _inference_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cuda", "cpu"), help="where to compute (default auto)"
    )
    parser.add_argument("--checkpoint", default="best", choices=("best", "last"), help="which weights (default best)")
    parser.add_argument(
        "--overlap", type=float, help="overlap of neighbouring windows, 0 to below 1 (default: the run's)"
    )
    parser.add_argument("--tta", action="store_true", help="average over the eight flips: better, eight times slower")
    parser.add_argument(
        "--memory",
        type=float,
        metavar="GB",
        help="host memory for one volume's logits (default: a quarter of the free)",
    )


def _options(arguments: argparse.Namespace):  # type: ignore[no-untyped-def]
    from fusionseg.inference.predictor import PredictOptions

    problems = []
    if arguments.overlap is not None and not 0 <= arguments.overlap < 1:
        problems.append(f"--overlap {arguments.overlap}: goes from 0 to below 1, such as 0.5")
    if arguments.memory is not None and arguments.memory <= 0:
        problems.append(f"--memory {arguments.memory}: is a number of gigabytes above 0")
    if problems:
        raise UserError(problems)
    return PredictOptions(arguments.device, arguments.checkpoint, arguments.overlap, arguments.tta, arguments.memory)
