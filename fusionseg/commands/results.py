"""Commands about trained runs: `evaluate`, `predict` and `compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fusionseg.commands.base import Commands, add_command, loading
from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import DONE, FAILED

if TYPE_CHECKING:
    from fusionseg.inference.predictor import PredictOptions


def add_evaluate(commands: Commands) -> None:
    parser = add_command(
        commands,
        "evaluate",
        "Dice and HD95 of runs per case and class, in the geometry of the label files; CSV, JSON and a picture;"
        " SSIM and PSNR of a pre-training",
        "fusionseg evaluate runs/hippocampus_unet\n  fusionseg evaluate runs/unets && fusionseg compare runs/unets",
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
    parser.set_defaults(overrides=[])  # settings after an option, see `fusionseg.commands.base.execute`
    _inference_arguments(parser, default=None)


def _evaluate(arguments: argparse.Namespace) -> int:
    with loading():
        from fusionseg.inference.evaluation.one_run import EvaluationOptions, evaluate_run
        from fusionseg.inference.evaluation.several_runs import evaluate_runs, is_one_run, split_words

    paths, overrides = split_words([*arguments.words, *arguments.overrides])
    others, more = split_words([str(path) for path in arguments.others])  # `--with` takes all words after it
    if arguments.checkpoint is None:
        arguments.checkpoint = "last" if arguments.dataset is None else "best"
    options = EvaluationOptions(
        _options(arguments),
        overrides + more,
        dataset_root=arguments.dataset,
        base_dir=arguments.base_dir,
        others=others,
        include_trained=arguments.include_trained,
        skip_existing=arguments.skip_existing,
        volumes=arguments.volumes,
    )
    if not paths:
        raise UserError("evaluate: no run is given: put a run folder, or a folder of runs, before the settings")
    if is_one_run(paths):
        return DONE if evaluate_run(paths[0], options).is_complete else FAILED
    outcomes = evaluate_runs(paths, options)
    print(outcomes.table())
    return DONE if outcomes.all_complete else FAILED


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
  fusionseg predict runs/unet_0 runs/unet_1 -i /data/new_scans -o masks --format input""",
        _predict,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, or a checkpoint file")
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
    _inference_arguments(parser)


def _predict(arguments: argparse.Namespace) -> int:
    with loading():
        from fusionseg.data.inputs.inputs import InputOptions
        from fusionseg.inference.predict import FileOptions, predict
        from fusionseg.inference.predicted_values import predict_values
        from fusionseg.inference.trained_network import gives_values

    inputs = InputOptions(arguments.cases, arguments.base_dir)
    valued = [run for run in arguments.runs if gives_values(run, arguments.checkpoint)]
    if valued:
        _refuse_options_of_masks(arguments, valued[0])
        values = predict_values(
            valued[0],
            arguments.input,
            arguments.output,
            device=arguments.device,
            checkpoint=arguments.checkpoint,
            options=inputs,
        )
        return FAILED if values.failed else DONE
    files = FileOptions(arguments.format, arguments.skip_existing, inputs)
    predicted = predict(arguments.runs, arguments.input, arguments.output, _options(arguments), files)
    return FAILED if predicted.failed else DONE


def _refuse_options_of_masks(arguments: argparse.Namespace, run: Path) -> None:
    """Refuse the options of a prediction of masks for a run that gives values.

    Raises:
        UserError: with all of them.
    """
    given = {
        "several runs": len(arguments.runs) > 1,
        "--format": arguments.format != "nifti",
        "--skip-existing": arguments.skip_existing,
        "--overlap": arguments.overlap is not None,
        "--tta": arguments.tta,
        "--memory": arguments.memory is not None,
    }
    if problems := [name for name, is_given in given.items() if is_given]:
        raise UserError(f"{', '.join(problems)}: {run} predicts a table of values, and no masks; remove it")


def add_compare(commands: Commands) -> None:
    parser = add_command(
        commands,
        "compare",
        "one table over runs: a row for each configuration, mean and spread over its seeds and folds",
        """fusionseg compare runs/unets
  fusionseg compare runs/table2 --rows name --metrics parameters "dice (files)" "hd95_mm (files)"
  fusionseg compare runs/few_labels --rows name --metrics "dice (files)" --against scratch
  fusionseg compare runs/views --ensembles""",
        _compare,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN|FOLDER", help="run folder, or a folder of them")
    parser.add_argument(
        "--checkpoint",
        default="last",
        choices=("last", "best"),
        help="values of each run's last step, or of its best validation, which was chosen on the same cases"
        " (default last)",
    )
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
    parser.add_argument(
        "--ensembles", action="store_true", help="add rows of the ensembles that fusionseg evaluate --with has scored"
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write compare.md and compare.csv there too")


def _compare(arguments: argparse.Namespace) -> int:
    with loading():
        from fusionseg.inference.comparison.layout import with_metrics, with_names
        from fusionseg.inference.comparison.paired import with_baseline
        from fusionseg.inference.comparison.rows import compare
        from fusionseg.inference.comparison.table import comparison_markdown, write_comparison
        from fusionseg.utils.files import writable_folder

    if arguments.output is not None:
        writable_folder(arguments.output, "--output")
    comparison = compare(arguments.runs, arguments.checkpoint, ensembles=arguments.ensembles)
    if arguments.metrics:
        comparison = with_metrics(comparison, arguments.metrics)
    if arguments.against is not None:
        comparison = with_baseline(comparison, arguments.against)
    if arguments.rows == "name":
        comparison = with_names(comparison)
    print(comparison_markdown(comparison))
    if arguments.output is not None:
        write_comparison(comparison, arguments.output)
    return DONE


def _inference_arguments(parser: argparse.ArgumentParser, default: str | None = "best") -> None:
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
        help="host memory for one volume's logits (default: a quarter of the free)",
    )


def _options(arguments: argparse.Namespace) -> PredictOptions:
    """Convert and check the options that `evaluate` and `predict` share.

    Raises:
        UserError: a value is out of range.
    """
    from fusionseg.inference.predictor import PredictOptions

    options = PredictOptions(arguments.device, arguments.checkpoint, arguments.overlap, arguments.tta, arguments.memory)
    if problems := options.problems(overlap="--overlap", memory="--memory"):
        raise UserError(problems)
    return options
