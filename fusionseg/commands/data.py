"""Commands about data sets: `synth`, `check` and `prepare`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fusionseg.commands.base import Commands, add_command, loading, positive
from fusionseg.utils.errors import UserError
from fusionseg.utils.exit_status import DONE, FAILED
from fusionseg.utils.logs import log
from fusionseg.utils.tables import printable

if TYPE_CHECKING:
    from fusionseg.config import DataConfig


def add_synth(commands: Commands) -> None:
    parser = add_command(
        commands,
        "synth",
        "write a synthetic data set in MSD layout: vessels in chest CT, organs in abdominal CT, or nested regions of"
        " tumours in brain MRI",
        "fusionseg synth data/synth --cases 24 --size 96 --seed 0\n  fusionseg synth data/organs --form organs",
        _synth,
    )
    parser.add_argument("out", type=Path, help="folder of the data set")
    parser.add_argument("--form", default="vessels", help="vessels, organs or regions (default vessels)")
    parser.add_argument("--cases", type=int, default=24, help="number of cases (default 24)")
    parser.add_argument(
        "--size",
        type=int,
        default=96,
        help="voxels in a row, at least 48 for vessels and 24 for the others (default 96)",
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed writes the same bytes (default 0)")
    parser.add_argument("--workers", type=positive, help="processes (default: the CPUs of this job)")


def _synth(arguments: argparse.Namespace) -> int:
    from fusionseg.data.synthetic.dataset import write_dataset
    from fusionseg.observability.progress import counting_progress

    with counting_progress("writing") as progress:
        path = write_dataset(
            arguments.out,
            form=arguments.form,
            cases=arguments.cases,
            size=arguments.size,
            seed=arguments.seed,
            workers=arguments.workers,
            progress=progress,
        )
    print(f"{path.parent}: {arguments.cases} cases of {arguments.form}, {arguments.size} voxels in a row")
    return DONE


def add_check(commands: Commands) -> None:
    parser = add_command(
        commands,
        "check",
        "read every file of a data set to its last byte and list all problems; status 1 if there are errors",
        "fusionseg check /data/Task04_Hippocampus --patch 48 64 48",
        _check,
    )
    parser.add_argument("dataset", help="folder, or datalist JSON")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="data.KEY=value",
        help="keys of a configuration that say how the data set is read, such as data.labels=[background,tumour]",
    )
    parser.add_argument(
        "--layout", help="auto, msd, nnunet, datalist, folders, or one of your own, MODULE:FUNCTION (default auto)"
    )
    parser.add_argument(
        "--base-dir", metavar="FOLDER", help="folder at which the relative paths of a datalist start (default: its own)"
    )
    parser.add_argument("--labels", nargs="+", help="names of the label values 0, 1, ... if the data set has none")
    parser.add_argument(
        "--reader", metavar="MODULE:CLASS", help="a reader of your own for image files (docs/extending.md)"
    )
    parser.add_argument("--patch", nargs=3, type=int, metavar=("X", "Y", "Z"), help="warn of volumes smaller than this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON too")
    parser.add_argument(
        "--fingerprint",
        type=Path,
        metavar="FOLDER",
        help="measure the training cases in the same reading; write fingerprint.html, .png and .json into the folder",
    )
    parser.add_argument("--workers", type=positive, help="processes (default: the CPUs of this job)")


def _check(arguments: argparse.Namespace) -> int:
    from fusionseg.config.data.parts import named_layout, named_reader
    from fusionseg.data.checks.dataset_check import check_dataset
    from fusionseg.data.fingerprint.outliers import find_outliers
    from fusionseg.data.fingerprint.report import write_report
    from fusionseg.data.formats.dataset import open_dataset
    from fusionseg.data.formats.readers import Readers
    from fusionseg.observability.progress import counting_progress
    from fusionseg.utils.files import writable_file, writable_folder, write_json

    if arguments.json is not None:
        writable_file(arguments.json, "--json")
    if arguments.fingerprint is not None:
        writable_folder(arguments.fingerprint, "--fingerprint")
    data = data_section(arguments.overrides, "check")
    layout, labels = named_layout(arguments.layout, "--layout") or data.layout, data.label_settings
    if arguments.labels:
        labels = replace(labels, labels=tuple(arguments.labels))
    patch = arguments.patch or (data.patch if "patch" in data.model_fields_set else None)
    reader = named_reader(arguments.reader, "--reader") or data.reader
    base_dir = arguments.base_dir or data.base_dir
    dataset = open_dataset(
        arguments.dataset,
        layout,
        labels,
        require_files=False,
        readers=Readers(reader, data.series),
        base_dir=base_dir,
        missing_channels=data.missing_channels,
    )
    with counting_progress("checking") as progress:
        report = check_dataset(
            dataset,
            patch=patch,
            fingerprint=arguments.fingerprint is not None,
            workers=arguments.workers,
            progress=progress,
        )
    print(printable(report.to_text()))
    if arguments.json is not None:
        write_json(arguments.json, report.to_json())
    if report.fingerprint is not None and report.fingerprint.cases:
        *_, page = write_report(arguments.fingerprint, report.fingerprint)
        print(printable(f"\n{find_outliers(report.fingerprint).to_text()}\nfingerprint: {page}"))
    elif arguments.fingerprint is not None:
        print("fingerprint: none, because no training case can be used")
    return FAILED if report.errors else DONE


def data_section(overrides: Sequence[str], command: str) -> DataConfig:
    """The section `data` of a configuration that has nothing but these overrides.

    Args:
        overrides: `data.key=value` texts.
        command: the command that reads them, for messages.

    Raises:
        UserError: an override is not of this section, or has a wrong value.
    """
    from fusionseg.config import DataConfig, RunConfig
    from fusionseg.config.loading import lay_over, validate_section
    from fusionseg.config.override import Override, parse_override

    parsed = [parse_override(text, RunConfig) for text in overrides]
    if wrong := [entry.location for entry in parsed if entry.keys[0] != "data" or len(entry.keys) == 1]:
        raise UserError([f"{place}: {command} reads keys under data. only, such as data.layout=msd" for place in wrong])
    for name, remedy in (
        ("root", f"leave it out: the first word after `{command}` is the data set"),
        ("also", "leave it out, and give each data set to a command of its own"),
    ):
        if stated := [entry.location for entry in parsed if entry.keys[1] == name]:
            raise UserError(f"{stated[0]}: {command} reads one data set; {remedy}")
    inner = [Override(entry.keys[1:], entry.value, entry.location) for entry in parsed]
    return validate_section(DataConfig, *lay_over({}, {}, inner))


def add_prepare(commands: Commands) -> None:
    parser = add_command(
        commands,
        "prepare",
        "prepare the cases of a configuration once, in parallel; resumable; status 1 if a case was set aside",
        "fusionseg prepare --config hippocampus_unet data.root=/data/Task04_Hippocampus output=/scratch/runs",
        _prepare,
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE|NAME", help="YAML file of the run, or the name of a shipped one"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="values that win over the file's")


def _prepare(arguments: argparse.Namespace) -> int:
    from fusionseg.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    with loading():
        from fusionseg.data.preprocessing.lost_foreground import lost_foreground_warning
        from fusionseg.data.preprocessing.prepare import prepare
        from fusionseg.observability.progress import counting_progress
        from fusionseg.runs.cases.datasets import open_datasets

    failed = False
    for opened in open_datasets(config):
        with counting_progress("preparing") as progress:
            report = prepare(opened.data, opened.dataset, opened.store, progress)
        print(printable(str(report)))
        records = list(report.store.cases.values())
        if opened.needs_labels and (lost := lost_foreground_warning(records, opened.dataset.labels)):
            log.warning("%s", lost)
        failed |= bool(report.failed)
    return FAILED if failed else DONE
