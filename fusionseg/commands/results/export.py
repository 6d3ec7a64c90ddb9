"""The commands `export` and `card`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fusionseg.commands.base import Commands, add_command, add_trust, loading
from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import DONE, FAILED

FORMATS = ("onnx", "torchscript", "torch", "bundle", "fseg")
WEIGHTS = ("fp32", "fp16", "int8")
_CASES, _CASES_OF_SMALL_WEIGHTS = 2, 5  # the difference that rounded weights make varies from case to case


def add_export(commands: Commands) -> None:
    parser = add_command(
        commands,
        "export",
        "write networks as programs of other libraries or as one archive for another fusionseg, with the contract about"
        " their inputs and outputs, and compare their masks with those of predict",
        """fusionseg export runs/unet --format onnx -o model
  python model/run.py -i scan.nii.gz -o mask.nii.gz                # numpy, nibabel and onnxruntime, no torch
  fusionseg export runs/unet_0 runs/unet_1 --format onnx -o model  # an ensemble
  fusionseg export runs/unet --weights int8 -o small               # a quarter of the size, and its Dice
  fusionseg export runs/unet --format bundle -o bundle             # python -m monai.bundle run ...
  fusionseg export runs/unet --format fseg -o unet.fseg            # fusionseg predict unet.fseg -i scans -o masks
  fusionseg export runs/unet data.root=/where/it/is/now --format torchscript""",
        _export,
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUN|key.path=value",
        help="run folders, checkpoint files or archives; settings about the cases to compare, such as data.root=FOLDER",
    )
    parser.add_argument(
        "--format",
        default="onnx",
        choices=FORMATS,
        help="onnx (default), with a runner that needs no torch; torchscript; torch, a program of torch.export;"
        " bundle, a MONAI bundle; fseg,"
        " one file that fusionseg predicts with, without the run",
    )
    parser.add_argument(
        "--weights",
        default="fp32",
        choices=WEIGHTS,
        help="type of the weights in an ONNX file: fp16 halves it, int8 makes it a quarter; the time stays the same."
        " The difference of the Dice is measured, and has no limit (default fp32)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER|FILE.fseg",
        help="folder for the model (default: export_FORMAT in the run), or the archive (default: NAME.fseg in the run)",
    )
    parser.add_argument("--checkpoint", default="best", choices=("best", "last"), help="which weights (default best)")
    parser.add_argument(
        "--cases",
        type=int,
        metavar="N",
        help="validation cases whose masks are compared with those of predict, status 1 if they differ; training cases"
        f" where there are no others; none of a checkpoint file; 0 compares none (default {_CASES}, and"
        f" {_CASES_OF_SMALL_WEIGHTS} with small weights)",
    )
    parser.add_argument("--licence", metavar="TEXT", help="licence of the weights, for the contract")
    add_trust(parser)
    parser.set_defaults(overrides=[])  # settings after an option, see `fusionseg.commands.base.execute`


def _export(arguments: argparse.Namespace) -> int:
    with loading():
        from fusionseg.export.archive import FORMAT, export_archive
        from fusionseg.export.export import ExportOptions, export_runs
        from fusionseg.inference.evaluation.several_runs import split_words

    runs, overrides = split_words([*arguments.words, *arguments.overrides])
    cases = arguments.cases
    if cases is None:
        cases = _CASES if arguments.weights == "fp32" else _CASES_OF_SMALL_WEIGHTS
    options = ExportOptions(
        arguments.format,
        arguments.output,
        arguments.checkpoint,
        overrides,
        cases,
        arguments.licence,
        arguments.weights,
    )
    problems = [] if runs else ["export: no run is given: put a run folder before the settings"]
    if problems := [*problems, *options.problems()]:
        raise UserError(problems)
    if arguments.format == FORMAT:
        return DONE if export_archive(runs, options).is_equal else FAILED
    return DONE if export_runs(runs, options).is_equal else FAILED


def add_card(commands: Commands) -> None:
    parser = add_command(
        commands,
        "card",
        "write the model card of a run, and the checklist CLAIM with the items that the run answers",
        "fusionseg card runs/unet\n  fusionseg card runs/unet -o paper --licence CC-BY-4.0",
        _card,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder of a segmentation")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", help="for card.md and claim.md (default: the run)"
    )
    parser.add_argument("--licence", metavar="TEXT", help="licence of the weights")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    add_trust(parser)


def _card(arguments: argparse.Namespace) -> int:
    with loading("libraries"):
        from fusionseg.export.card.files import write_card

    for path in write_card(arguments.run, arguments.output, arguments.licence, overwrite=arguments.overwrite):
        print(path)
    return DONE
