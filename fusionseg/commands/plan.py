"""The command `plan`: a configuration from the fingerprint of a data set."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fusionseg.commands.base import Commands, add_command, loading, positive
from fusionseg.commands.data import data_section
from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import DONE

if TYPE_CHECKING:
    from fusionseg.data.fingerprint.fingerprint import Fingerprint
    from fusionseg.data.formats.dataset import Dataset
    from fusionseg.planning.plan import ExperimentPlan

_LISTED = 12
"""Differences to an existing file that a message lists."""


def add_plan(commands: Commands) -> None:
    parser = add_command(
        commands,
        "plan",
        "choose a configuration for a data set, with the reason for each value as a comment",
        "fusionseg plan /data/Task04_Hippocampus -o hippocampus.yaml\n"
        "  fusionseg plan /data/Task04_Hippocampus --memory 16GB -o hippocampus_t4.yaml data.classes=[Anterior]\n"
        "  fusionseg train --config hippocampus.yaml",
        _plan,
    )
    parser.add_argument("dataset", help="folder, or datalist JSON")
    parser.add_argument(
        "overrides", nargs="*", metavar="data.KEY=value", help="keys that the plan keeps, such as data.spacing=[1,1,1]"
    )
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="CONFIG", help="the YAML file to write")
    parser.add_argument(
        "--memory", metavar="GB", help="plan for a GPU elsewhere of this memory, such as 16GB (default: this machine)"
    )
    parser.add_argument(
        "--gpus", type=positive, default=1, metavar="N", help="plan for a training on N such GPUs (default: 1)"
    )
    parser.add_argument("--network", metavar="NAME", help="a network of `fusionseg models` (default: by the device)")
    parser.add_argument(
        "--budget",
        choices=["M", "L", "XL"],
        help="nnU-Net's residual-encoder U-Net for a GPU of 8, 24 or 40 GB (Isensee et al., 2024)",
    )
    parser.add_argument(
        "--fingerprint",
        type=Path,
        metavar="FOLDER",
        help="folder of the measurements: fingerprint.html, .png, .json; used again while the data set is unchanged"
        " (default: CONFIG without .yaml, and _fingerprint)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace CONFIG if it exists and differs")
    parser.add_argument("--workers", type=positive, help="processes that read cases (default: the CPUs of this job)")


def _plan(arguments: argparse.Namespace) -> int:
    with loading():
        from fusionseg.data.fingerprint.outliers import find_outliers
        from fusionseg.data.formats.dataset import open_dataset
        from fusionseg.data.formats.readers import Readers
        from fusionseg.planning.device import planned_device
        from fusionseg.planning.plan import PlanRequest, plan_experiment, planned_network, run_name
        from fusionseg.utils.files import user_path, writable_file, writable_folder

    output: Path = arguments.output
    if output.suffix not in (".yaml", ".yml"):
        raise UserError(f"--output: expected a file that ends in .yaml, got {output}")
    writable_file(output, "--output")
    folder = arguments.fingerprint or output.with_name(f"{output.stem}_fingerprint")
    writable_folder(folder, "--fingerprint")
    data = data_section(arguments.overrides, "plan")
    network = planned_network(arguments.network, arguments.budget)
    device = planned_device(arguments.memory, arguments.budget, arguments.gpus)
    root = str(user_path(arguments.dataset).absolute())
    dataset = open_dataset(
        root,
        data.layout,
        data.label_settings,
        require_files=False,
        readers=Readers.of(data),
        base_dir=data.base_dir,
        missing_channels=data.missing_channels,
    )
    if not any(case.label is not None for case in dataset.training):
        raise UserError(
            f"{root}: has no training case with a label, and a plan is for a segmentation; for images without labels"
            " start from the shipped configuration mae_swin"
        )
    fingerprint, page = _fingerprint(dataset, folder, arguments.workers)
    request = PlanRequest(run_name(output), root, data, device, network, _command(arguments))
    plan = plan_experiment(dataset, fingerprint, request, find_outliers(fingerprint).sentences(_LISTED))
    print(plan.summary())
    print(page)
    print(_write(plan, output, overwrite=arguments.overwrite))
    return DONE


def _fingerprint(dataset: Dataset, folder: Path, workers: int | None) -> tuple[Fingerprint, str]:
    """Read the fingerprint of a data set, and write it; or take the one in the folder, if no file has changed since.

    Returns:
        The fingerprint, and a line about its page.
    """
    from fusionseg.data.fingerprint.kept import kept_fingerprint
    from fusionseg.data.fingerprint.reading import read_fingerprint
    from fusionseg.data.fingerprint.report import FILE_NAMES, write_report
    from fusionseg.observability.progress import counting_progress

    content, _, page = (folder / name for name in FILE_NAMES)
    kept = kept_fingerprint(content, dataset)
    if kept is not None:
        return kept, f"{page}: kept, because no file of the data set has changed"
    with counting_progress("reading") as progress:
        fingerprint = read_fingerprint(dataset, workers=workers, progress=progress)
    if not fingerprint.cases:  # the plan refuses it
        return fingerprint, ""
    write_report(folder, fingerprint)
    return fingerprint, f"{page}: written"


def _command(arguments: argparse.Namespace) -> list[str]:
    """The command line that makes the same plan again."""
    words = ["fusionseg", "plan", arguments.dataset]
    for option in ("memory", "network", "budget"):
        words += [f"--{option}", value] if (value := getattr(arguments, option)) is not None else []
    words += ["--gpus", str(arguments.gpus)] if arguments.gpus > 1 else []
    return [*words, "-o", str(arguments.output), *arguments.overrides]


def _write(plan: ExperimentPlan, output: Path, *, overwrite: bool) -> str:
    """Write the configuration, and return a line about it.

    Raises:
        UserError: the file exists and differs, and it may not be replaced.
    """
    from fusionseg.config.loading import differences
    from fusionseg.config.yaml_location import read_yaml
    from fusionseg.planning.choices import plain_values
    from fusionseg.utils.files import write_text

    text = plan.to_yaml()
    ranks = plan.ranks
    program = "fusionseg train" if ranks == 1 else f"torchrun --nproc_per_node={ranks} -m fusionseg.train"
    start = f"train with: {program} --config {output}"
    if output.exists() and output.read_bytes() != text.encode():
        if not overwrite:
            changes = differences(read_yaml(output)[0], plain_values(plan.choices)) or ["comments only"]
            more = [f"and {len(changes) - _LISTED} more"] if len(changes) > _LISTED else []
            listed = "; ".join([*changes[:_LISTED], *more])
            raise UserError(
                f"{output}: exists, and the plan differs from it ({listed}); choose another file, or replace it with"
                " --overwrite"
            )
    elif output.exists():
        return f"{output}: exists already and is the same\n{start}"
    write_text(output, text)
    return f"{output}: written\n{start}"
