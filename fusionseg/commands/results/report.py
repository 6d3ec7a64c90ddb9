"""The commands `report` and `render`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fusionseg.commands.base import Commands, add_command, add_trust, loading
from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import DONE


def add_report(commands: Commands) -> None:
    parser = add_command(
        commands,
        "report",
        "a page for people about a run, an evaluation, or a folder of runs: tables, curves, distributions, the worst"
        " and the best cases with pictures; one HTML file that needs no network",
        "fusionseg report runs/hippocampus_unet\n  fusionseg report runs/hippocampus_unet/evaluation --pictures 5\n"
        "  fusionseg report runs/hippocampus_folds",
        _report,
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="FOLDER|key.path=value",
        help="run folders, folders of evaluations in them, folders of runs, and settings such as"
        " data.root=/where/it/is/now",
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=10,
        metavar="N",
        help="draw the N worst and the N best cases of an evaluation (default 10); 0 reads no images",
    )
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cuda", "cpu"), help="where to predict the cases (default auto)"
    )
    add_trust(parser)
    parser.set_defaults(overrides=[])  # settings after an option, see `fusionseg.commands.base.execute`


def _report(arguments: argparse.Namespace) -> int:
    with loading():
        from fusionseg.inference.evaluation.several_runs import split_words
        from fusionseg.inference.reports.case_sections import ReportOptions
        from fusionseg.inference.reports.pages import write_pages

    paths, overrides = split_words([*arguments.words, *arguments.overrides])
    if not paths:
        raise UserError(
            "report: no folder is given: put a run folder, an evaluation in it or a folder of runs before the settings"
        )
    if arguments.pictures < 0:
        raise UserError(f"--pictures: expected a whole number of at least 0, got {arguments.pictures}")
    options = ReportOptions(arguments.pictures, arguments.device, tuple(overrides))
    for page in write_pages(paths, options):
        print(page)
    return DONE


def add_render(commands: Commands) -> None:
    parser = add_command(
        commands,
        "render",
        "a picture (PNG) of a mask over its image: three planes and a rendering, beside a reference if one is given",
        """fusionseg render scan.nii.gz mask.nii.gz -o picture.png
  fusionseg render scan.nii.gz mask.nii.gz --reference label.nii.gz --names liver tumour -o picture.png""",
        _render,
    )
    parser.add_argument("image", type=Path, help="the image: a file, or a DICOM series")
    parser.add_argument("mask", type=Path, help="the mask, with the values 0 (background), 1, 2, ... up to 254")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="PNG", help="the picture")
    parser.add_argument("--reference", type=Path, metavar="LABEL", help="draw the differences from this label too")
    parser.add_argument(
        "--names", nargs="+", default=[], metavar="NAME", help="names of the values 1, 2, ... for the legend"
    )


def _render(arguments: argparse.Namespace) -> int:
    with loading("libraries"):
        from fusionseg.inference.reports.rendered_mask import write_rendering

    write_rendering(arguments.image, arguments.mask, arguments.output, arguments.reference, arguments.names)
    print(arguments.output)
    return DONE
