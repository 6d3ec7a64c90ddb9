"""Arguments that several commands about results share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fusionseg.commands.base import add_trust
from fusionseg.utils.errors import UserError

if TYPE_CHECKING:
    from fusionseg.inference.predictor import PredictOptions


def inference_arguments(parser: argparse.ArgumentParser, default: str | None = "best") -> None:
    """Add the options that `evaluate` and `predict` share.

    Args:
        parser: the parser of the command.
        default: the default of `--checkpoint`; None if it depends on other options.
    """
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cuda", "cpu"), help="where to compute (default auto)"
    )
    shown = default or "last for the validation cases, on which best was chosen; best with --dataset"
    parser.add_argument(
        "--checkpoint", default=default, choices=("best", "last"), help=f"which weights (default {shown})"
    )
    parser.add_argument(
        "--overlap", type=float, help="overlap of neighbouring windows, 0 to below 1 (default: the run's)"
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="average over flips of the axes that the training flips: better, eight times slower for three axes;"
        " refused for augment.flip: 0",
    )
    parser.add_argument(
        "--memory",
        type=float,
        metavar="GB",
        help="host memory for one volume's logits (default: half of the free)",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        help="of the forward pass (default: that of the training, or another one if the device lacks it)",
    )
    add_trust(parser)


def inference_options(arguments: argparse.Namespace) -> PredictOptions:
    """Convert and check the options that `evaluate` and `predict` share.

    Raises:
        UserError: a value is out of range.
    """
    from fusionseg.inference.predictor import PredictOptions

    options = PredictOptions(
        arguments.device,
        arguments.checkpoint,
        arguments.overlap,
        arguments.tta,
        arguments.memory,
        arguments.precision,
        skip_air=getattr(arguments, "skip_air", False),  # of `predict` alone
    )
    if problems := options.problems(overlap="--overlap", memory="--memory"):
        raise UserError(problems)
    return options


def runs_arguments(
    parser: argparse.ArgumentParser, counted: str = "evaluations", *, postprocessed: bool = True
) -> None:
    """Add the arguments that `compare`, `statistics` and `best` share: the runs, and which of their results count.

    Args:
        parser: the parser of the command.
        counted: what the command takes from the runs.
        postprocessed: add the option `--postprocessed`.
    """
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN|FOLDER", help="run folder, or a folder of them")
    parser.add_argument(
        "--checkpoint",
        default="last",
        choices=("last", "best"),
        help=f"{counted} of each run's last step, or of its best validation, which was chosen on the same cases"
        " (default last)",
    )
    parser.add_argument(
        "--ensembles", action="store_true", help="add rows of the ensembles that fusionseg evaluate --with has scored"
    )
    if postprocessed:
        parser.add_argument(
            "--postprocessed",
            action="store_true",
            help="add rows of the masks with post-processing that fusionseg evaluate --postprocess has scored",
        )
    add_trust(parser)


def output_folder(runs: list[Path], output: Path | None) -> Path | None:
    """The folder for the files of a command about runs: the given one, else the only folder of runs; None without both.

    Args:
        runs: the arguments of the command.
        output: the value of `--output`.
    """
    from fusionseg.runs.paths import is_run_folder

    return output if output is not None or len(runs) > 1 or is_run_folder(runs[0]) else runs[0]
