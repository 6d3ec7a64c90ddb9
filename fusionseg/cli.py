"""`fusionseg <command>`. Arguments only: each command imports its work when it runs, so that help is quick."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fusionseg import __version__
from fusionseg.entry import DONE, FAILED, run
from fusionseg.errors import UserError

Commands = argparse._SubParsersAction  # argparse gives the type no public name


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    parser = argparse.ArgumentParser(
        prog="fusionseg",
        description="Training of 3D medical image segmentation. Train with: python -m fusionseg.train --help",
    )
    parser.add_argument("--version", action="version", version=f"fusionseg {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (
        _add_synth,
        _add_check,
        _add_prepare,
        _add_evaluate,
        _add_predict,
        _add_compare,
        _add_models,
        _add_schema,
    ):
        add(commands)
    arguments = parser.parse_args(argv)
    work: Callable[[argparse.Namespace], int] = arguments.work

    def quietly() -> int:
        from fusionseg.telemetry.logs import start_logging

        start_logging()
        return work(arguments)

    return run(quietly)


def _command(
    commands: Commands[argparse.ArgumentParser],
    name: str,
    text: str,
    example: str,
    work: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(work=work)
    return parser


def _add_synth(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "synth",
        "write a synthetic data set: chest CT with a pulmonary-artery tree, MSD layout",
        "fusionseg synth data/synth --cases 24 --size 96 --seed 0",
        _synth,
    )
    parser.add_argument("out", type=Path, help="folder of the data set")
    parser.add_argument("--cases", type=int, default=24, help="number of cases (default 24)")
    parser.add_argument("--size", type=int, default=96, help="voxels per axis, at least 48 (default 96)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed writes the same bytes (default 0)")
    parser.add_argument("--workers", type=int, help="processes (default: the CPUs of this job)")


def _synth(arguments: argparse.Namespace) -> int:
    from fusionseg.data.synth import write_dataset
    from fusionseg.telemetry.progress import counting_progress

    with counting_progress("writing") as progress:
        path = write_dataset(
            arguments.out,
            cases=arguments.cases,
            size=arguments.size,
            seed=arguments.seed,
            workers=arguments.workers,
            progress=progress,
        )
    print(f"{path.parent}: {arguments.cases} cases of {arguments.size}^3 voxels")
    return DONE


def _add_check(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "check",
        "read every file of a data set to its last byte and list all problems; status 1 if there are errors",
        "fusionseg check /data/Task04_Hippocampus --patch 48 64 48",
        _check,
    )
    parser.add_argument("dataset", help="folder, or datalist JSON")
    parser.add_argument("--layout", default="auto", help="auto, msd, nnunet or datalist (default auto)")
    parser.add_argument("--labels", nargs="+", help="names of the label values 0, 1, ... if the data set has none")
    parser.add_argument("--patch", nargs=3, type=int, metavar=("X", "Y", "Z"), help="warn of volumes smaller than this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON too")
    parser.add_argument("--workers", type=int, help="processes (default: the CPUs of this job)")


def _check(arguments: argparse.Namespace) -> int:
    from fusionseg.data.check import check_dataset
    from fusionseg.data.dataset import open_dataset
    from fusionseg.files import write_json
    from fusionseg.telemetry.progress import counting_progress

    dataset = open_dataset(arguments.dataset, arguments.layout, arguments.labels, require_files=False)
    with counting_progress("checking") as progress:
        report = check_dataset(dataset, patch=arguments.patch, workers=arguments.workers, progress=progress)
    print(report.to_text())
    if arguments.json is not None:
        write_json(arguments.json, report.to_json())
    return FAILED if report.errors else DONE


def _add_prepare(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "prepare",
        "prepare the cases of a configuration once, in parallel; resumable; status 1 if a case was set aside",
        "fusionseg prepare --config configs/hippocampus_unet.yaml data.root=/data/Task04_Hippocampus",
        _prepare,
    )
    parser.add_argument("--config", required=True, help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="values that win over the file's")


def _prepare(arguments: argparse.Namespace) -> int:
    from fusionseg.config import load_config
    from fusionseg.data.prepare import prepare
    from fusionseg.engine.sources import open_datasets
    from fusionseg.telemetry.progress import counting_progress

    failed = False
    for config, dataset in open_datasets(load_config(arguments.config, arguments.overrides)):
        with counting_progress("preparing") as progress:
            report = prepare(config, dataset, progress)
        print(report)
        failed |= bool(report.failed)
    return FAILED if failed else DONE


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


def _add_evaluate(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "evaluate",
        "Dice and HD95 of a run per case and class, in the geometry of the label files; CSV, JSON and a picture",
        "fusionseg evaluate runs/hippocampus_unet",
        _evaluate,
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument(
        "--dataset", help="evaluate on all labelled cases of this data set instead of the validation fold"
    )
    parser.add_argument(
        "--with", dest="others", nargs="+", type=Path, default=[], metavar="RUN", help="average with these runs"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="such as data.root=/where/it/is/now")
    _inference_arguments(parser)


def _evaluate(arguments: argparse.Namespace) -> int:
    from fusionseg.engine.run_folder import load_run_config
    from fusionseg.inference.evaluate import evaluate
    from fusionseg.inference.table import evaluation_table

    config = load_run_config(arguments.run, arguments.overrides)
    result = evaluate(
        arguments.run, config, _options(arguments), dataset_root=arguments.dataset, others=arguments.others
    )
    print(evaluation_table(result.summary))
    print(f"{result.folder}: cases.csv, summary.json, best_and_worst.png")
    return FAILED if result.failed else DONE


def _add_predict(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _command(
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


def _add_models(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "models",
        "list the networks with their parameters, multiply-adds and activation memory, for one sample in 32-bit floats",
        "fusionseg models swin_unetr nnunet_plain --patch 128 128 128",
        _models,
    )
    parser.add_argument(
        "what", nargs="*", metavar="NAME", help="only these networks; with --config, key.path=value over the file"
    )
    parser.add_argument("--config", help="YAML file of a run: cost its network, on its data.patch")
    parser.add_argument(
        "--patch", nargs=3, type=int, metavar=("X", "Y", "Z"), help="voxels (default 96 96 96, or the configuration's)"
    )
    parser.add_argument("--in-channels", type=int, default=1, help="channels of the volumes (default 1)")
    parser.add_argument("--classes", type=int, default=2, help="classes, background included (default 2)")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table that says what each one is")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the list as JSON too")


def _models(arguments: argparse.Namespace) -> int:
    from fusionseg.config import load_config
    from fusionseg.files import write_json
    from fusionseg.models.cost import default_configs, list_networks, to_json, to_markdown, to_text

    patch = tuple(arguments.patch or (96, 96, 96))
    checkpoint_activations = False
    if min(*patch, arguments.in_channels, arguments.classes) < 1:
        raise UserError("--patch, --in-channels, --classes: are whole numbers from 1")
    if arguments.config is None:
        configs = default_configs(arguments.what)
    else:
        config = load_config(arguments.config, arguments.what)
        configs, checkpoint_activations = [config.model], config.train.checkpoint_activations
        patch = patch if arguments.patch else config.data.patch
    listed = list_networks(
        configs,
        patch,
        in_channels=arguments.in_channels,
        out_channels=arguments.classes,
        checkpoint_activations=checkpoint_activations,
    )
    print(to_markdown(listed) if arguments.markdown else to_text(listed))
    if arguments.json is not None:
        write_json(arguments.json, to_json(listed))
    return DONE


def _add_compare(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "compare",
        "one table over runs: a row for each configuration, mean and spread over its seeds and folds",
        "fusionseg compare runs/unet_comparison",
        _compare,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN|FOLDER", help="run folder, or a folder of them")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write compare.md and compare.csv there too")


def _compare(arguments: argparse.Namespace) -> int:
    from fusionseg.files import write_text
    from fusionseg.inference.compare import compare

    comparison = compare(arguments.runs)
    print(comparison.to_markdown())
    if arguments.output is not None:
        write_text(arguments.output / "compare.md", comparison.to_markdown() + "\n")
        write_text(arguments.output / "compare.csv", comparison.to_csv())
    return DONE


def _add_schema(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "schema",
        "print the JSON schema of a configuration, for editors that complete and check YAML",
        "fusionseg schema > fusionseg.schema.json",
        _schema,
    )
    parser.add_argument("--output", type=Path, help="write it here instead")


def _schema(arguments: argparse.Namespace) -> int:
    from fusionseg.config import json_schema
    from fusionseg.files import write_json

    if arguments.output is not None:
        write_json(arguments.output, json_schema())
    else:
        print(json.dumps(json_schema(), indent=1))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
