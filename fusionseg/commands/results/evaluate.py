"""The command `evaluate`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fusionseg.commands.base import Commands, add_command, loading
from fusionseg.commands.results.options import inference_arguments, inference_options
from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import DONE, FAILED

if TYPE_CHECKING:
    from fusionseg.distributed.world import World
    from fusionseg.inference.evaluation.opening import EvaluationOptions

_GRACE_S = 30.0
"""Seconds that a rank has for its end after torchrun has ended."""


def add_evaluate(commands: Commands) -> None:
    parser = add_command(
        commands,
        "evaluate",
        "metrics of runs per case and class, in the geometry of the label files: overlap, surfaces and volumes; CSV,"
        " JSON, masks and a picture; SSIM and PSNR of a pre-training",
        """fusionseg evaluate runs/hippocampus_unet
  fusionseg evaluate runs/unets && fusionseg compare runs/unets
  torchrun --nproc_per_node=2 -m fusionseg evaluate runs/hippocampus_unet   # cases over two GPUs
  srun --ntasks=8 --kill-on-bad-exit=1 fusionseg evaluate runs/hippocampus_unet --join-tasks""",
        _evaluate,
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUN|FOLDER|key.path=value",
        help="run folders, folders of runs, and settings such as data.root=/where/it/is/now",
    )
    parser.add_argument(
        "--dataset",
        help="evaluate on all labelled cases of this data set, test cases too, instead of the validation fold",
    )
    parser.add_argument(
        "--base-dir",
        metavar="FOLDER",
        help="folder at which the relative paths of the datalist of --dataset start (default: its own)",
    )
    parser.add_argument(
        "--with", dest="others", nargs="+", type=Path, default=[], metavar="RUN", help="average with these runs"
    )
    parser.add_argument(
        "--include-trained",
        action="store_true",
        help="count cases that were trained on in the means too, and mark the results",
    )
    parser.add_argument(
        "--skip-existing",
        action="store_true",
        help="keep an evaluation of the same weights, cases and options that is newer than the weights",
    )
    parser.add_argument(
        "--volumes",
        action="store_true",
        help="of a pre-training: write the original, masked and reconstructed volumes too, as NIfTI",
    )
    parser.add_argument(
        "--no-masks",
        dest="masks",
        action="store_false",
        help="do not keep the masks of a segmentation in the folder of the evaluation",
    )
    parser.add_argument(
        "--postprocess",
        default="none",
        metavar="auto|none|FILE",
        help="score the masks after a post-processing, into a folder of their own; auto: that which fusionseg"
        " postprocess has stored with the runs, for their validation cases as chosen on the cases of other runs; or a"
        " postprocessing.json (default none)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that compute the metrics of a segmentation while further cases are predicted (default: by the"
        " CPUs and the free memory, if the metrics take long; 1 starts none)",
    )
    parser.add_argument(
        "--join-tasks",
        action="store_true",
        help="under srun: the tasks of the step divide the cases of each run, as the ranks of torchrun always do;"
        " without this option each task evaluates its own runs alone",
    )
    parser.set_defaults(overrides=[])  # settings after an option, see `fusionseg.commands.base.execute`
    inference_arguments(parser, default=None)


def _evaluate(arguments: argparse.Namespace) -> int:
    with loading():
        from fusionseg.distributed.launch import read_launch
        from fusionseg.distributed.torchrun_end import end_of_rank
        from fusionseg.distributed.torchrun_watch import end_with_torchrun
        from fusionseg.inference.calls.dealt_cases import join_ranks
        from fusionseg.inference.evaluation.opening import EvaluationOptions
        from fusionseg.inference.evaluation.several_runs import split_words

    paths, overrides = split_words([*arguments.words, *arguments.overrides])
    others, more = split_words([str(path) for path in arguments.others])  # `--with` takes all words after it
    if arguments.checkpoint is None:
        arguments.checkpoint = "last" if arguments.dataset is None else "best"
    options = EvaluationOptions(
        inference_options(arguments),
        overrides + more,
        dataset_root=arguments.dataset,
        base_dir=arguments.base_dir,
        others=others,
        include_trained=arguments.include_trained,
        skip_existing=arguments.skip_existing,
        volumes=arguments.volumes,
        masks=arguments.masks,
        workers=arguments.workers,
        postprocess=arguments.postprocess,
    )
    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers: expected a number from 1, got {options.workers}")
    if not paths:
        raise UserError("evaluate: no run is given: put a run folder, or a folder of runs, before the settings")
    launch = read_launch(os.environ)
    end_with_torchrun(_GRACE_S)  # a rank would wait seven days for those that ended with it
    world = join_ranks(launch, repr((paths, options)), join_tasks=arguments.join_tasks)
    try:
        is_complete = _evaluate_all(paths, options, world)
        if world.size == 1:
            end_of_rank(launch, failed=not is_complete)
        # Ranks that joined have one outcome. None ends before rank 0 has written it: a failed one may end the others.
        world.all_gather_object(None)
    finally:
        world.close()
    return DONE if is_complete else FAILED


def _evaluate_all(paths: Sequence[Path], options: EvaluationOptions, world: World) -> bool:
    """Evaluate one run or several. Tell whether all cases were scored."""
    from fusionseg.inference.evaluation.one_run import evaluate_run
    from fusionseg.inference.evaluation.several_runs import evaluate_runs, is_one_run

    if is_one_run(paths):
        return evaluate_run(paths[0], options, world).is_complete
    outcomes = evaluate_runs(paths, options, world)
    if world.is_rank_zero:
        print(outcomes.table())
    return outcomes.all_complete
