"""The command `postprocess`."""

from __future__ import annotations

import argparse

from fusionseg.commands.base import Commands, add_command, add_trust, loading
from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import DONE


def add_postprocess(commands: Commands) -> None:
    parser = add_command(
        commands,
        "postprocess",
        "choose the post-processing of masks (largest component, holes, smallest size) on the masks that evaluations"
        " have kept, and store it with the runs",
        "fusionseg evaluate runs/hippocampus_unet && fusionseg postprocess runs/hippocampus_unet\n"
        "  fusionseg postprocess runs/fold0 runs/fold1 runs/fold2      # one choice for all folds\n"
        "  fusionseg predict runs/hippocampus_unet -i scans -o masks --postprocess auto",
        _postprocess,
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUN|FOLDER|key.path=value",
        help="run folders or folders of runs, of one configuration; settings such as data.root=/where/it/is/now",
    )
    parser.add_argument(
        "--checkpoint",
        default="last",
        choices=("last", "best"),
        help="weights of the evaluations (default last: the best were chosen on the same cases)",
    )
    add_trust(parser)
    parser.set_defaults(overrides=[])  # settings after an option, see `fusionseg.commands.base.execute`


def _postprocess(arguments: argparse.Namespace) -> int:
    with loading():
        from fusionseg.inference.evaluation.several_runs import split_words
        from fusionseg.inference.postprocessing.validation import choice_table, choose_for_runs
        from fusionseg.runs.paths import POSTPROCESSING, run_folders

    paths, overrides = split_words([*arguments.words, *arguments.overrides])
    if not paths:
        raise UserError("postprocess: no run is given: put a run folder, or a folder of runs, before the settings")
    runs = run_folders(paths)
    choice = choose_for_runs(runs, arguments.checkpoint, overrides)
    print(choice_table(choice, runs))
    print(f"{', '.join(map(str, runs))}: {POSTPROCESSING}; fusionseg predict RUN ... --postprocess auto applies it")
    return DONE
