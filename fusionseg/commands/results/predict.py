"""The command `predict`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from fusionseg.commands.base import Commands, add_command, loading
from fusionseg.commands.results.options import inference_arguments, inference_options
from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import DONE, FAILED
from fusionseg.utils.logs import log, process_rank, start_logging


def add_predict(commands: Commands) -> None:
    parser = add_command(
        commands,
        "predict",
        "write masks in each input's own geometry; several runs are an ensemble; a table for a task that gives values",
        """fusionseg predict runs/unet -i scan.nii.gz -o masks              # one image
  fusionseg predict runs/unet -i /data/new_scans -o masks           # each image in a folder
  fusionseg predict runs/unet -i /data/patients -o masks            # a folder for each case
  fusionseg predict runs/unet -i /data/dicom/SERIES -o masks --format dicom-seg
  fusionseg predict runs/unet -i /data/cases.json --cases all --base-dir /data/scans -o masks
  fusionseg predict runs/unet_0 runs/unet_1 -i /data/new_scans -o masks --format input
  torchrun --nproc_per_node=2 -m fusionseg predict runs/unet -i /data/new_scans -o masks   # cases over two GPUs""",
        _predict,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, checkpoint file or archive")
    parser.add_argument(
        "-i",
        "--input",
        required=True,
        type=Path,
        help="an image file; a folder of images; a folder for each case, with one image, the files of its channels or"
        " DICOM series; a DICOM series; a datalist JSON, or the folder of a data set",
    )
    parser.add_argument("-o", "--output", required=True, type=Path, help="folder for the masks, or for predictions.csv")
    parser.add_argument(
        "--format",
        default="nifti",
        metavar="FORMAT",
        help="of the masks: nifti (default), nrrd (.seg.nrrd, with names of classes for 3D Slicer), mha, npy, dicom-seg"
        " (of DICOM series), or input: as each image, and dicom-seg of a DICOM series",
    )
    parser.add_argument(
        "--probabilities",
        metavar="FORMAT",
        help="write the probability of each class or region too: nifti (CASE_probabilities.nii.gz, 4D) or npz (as"
        " nnU-Net does); takes host memory for all classes of a volume at once",
    )
    parser.add_argument(
        "--skip-air",
        action="store_true",
        help="leave out windows that hold nothing but background, such as air that data.intensity clips to one value;"
        " voxels in no other window are background",
    )
    parser.add_argument(
        "--cases",
        choices=("test", "training", "all"),
        help="of a data set: the cases to predict (default: its test cases, or all if there are none)",
    )
    parser.add_argument(
        "--base-dir", metavar="FOLDER", help="folder at which the relative paths of a datalist start (default: its own)"
    )
    parser.add_argument(
        "--skip-existing",
        action="store_true",
        help="keep masks that are there already, made by the same runs and options",
    )
    parser.add_argument(
        "--postprocess",
        default="none",
        metavar="auto|none|FILE",
        help="auto: the post-processing that fusionseg postprocess has stored with the runs; or a postprocessing.json"
        " (default none)",
    )
    parser.add_argument(
        "--part",
        metavar="PART",
        help="predict a part of the cases, such as 2/8, or array: that of this task of a SLURM array (ranks of torchrun"
        " and srun divide the cases among them without this option)",
    )
    inference_arguments(parser)


def _predict(arguments: argparse.Namespace) -> int:
    with loading():
        from fusionseg.data.inputs.inputs import InputOptions
        from fusionseg.distributed.torchrun_end import end_of_rank
        from fusionseg.inference.calls.share import read_share
        from fusionseg.inference.predict import FileOptions, predict
        from fusionseg.inference.predicted_values import predict_values
        from fusionseg.inference.trained_network import task_of

    inputs = InputOptions(arguments.cases, arguments.base_dir)
    share = read_share(arguments.part, os.environ)
    valued = [run for run in arguments.runs if task_of(run, arguments.checkpoint).gives_values]
    if valued:
        _refuse_options_of_masks(arguments, valued[0], share.launch.world_size)
        values = predict_values(
            valued[0],
            arguments.input,
            arguments.output,
            device=arguments.device,
            checkpoint=arguments.checkpoint,
            options=inputs,
        )
        return FAILED if values.failed else DONE
    options = inference_options(arguments)
    if arguments.part is None and os.environ.get("SLURM_ARRAY_TASK_COUNT", "1") != "1":
        log.info("this task of a SLURM array predicts all cases; --part array divides them among the tasks")
    if share.count > 1:
        start_logging(process_rank(), results=True)
    files = FileOptions(
        arguments.format, arguments.skip_existing, inputs, arguments.probabilities, arguments.postprocess, share
    )
    failed = True
    try:
        failed = bool(predict(arguments.runs, arguments.input, arguments.output, options, files).failed)
    finally:
        end_of_rank(share.launch, failed=failed)
    return FAILED if failed else DONE


def _refuse_options_of_masks(arguments: argparse.Namespace, run: Path, processes: int) -> None:
    """Refuse the options of a prediction of masks for a run that gives values.

    Raises:
        UserError: with all of them.
    """
    given = {
        "several runs": len(arguments.runs) > 1,
        "--format": arguments.format != "nifti",
        "--skip-existing": arguments.skip_existing,
        "--probabilities": arguments.probabilities is not None,
        "--postprocess": arguments.postprocess != "none",
        "--part": arguments.part is not None,
        "several processes": processes > 1,
        "--overlap": arguments.overlap is not None,
        "--tta": arguments.tta,
        "--memory": arguments.memory is not None,
        "--skip-air": arguments.skip_air,
        "--precision": arguments.precision is not None,
    }
    if problems := [name for name, is_given in given.items() if is_given]:
        raise UserError(f"{', '.join(problems)}: {run} predicts a table of values, and no masks; remove it")
