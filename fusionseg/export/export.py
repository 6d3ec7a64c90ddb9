"""The export of runs into a folder: programs, contract, comparison with `predict`, and the runner of ONNX models."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fusionseg.data.formats.case import Case
from fusionseg.data.formats.case_reader import read_image
from fusionseg.export.contract import CONTRACT, contract_of, refusals, with_programs
from fusionseg.export.parity import (
    LIMIT,
    PARITY,
    CompareCases,
    MaskOf,
    cases_to_compare,
    compare_masks,
    not_compared,
)
from fusionseg.export.programs import FORMATS, Run, write_program
from fusionseg.inference.predictor import PredictOptions, Predictor
from fusionseg.runs.json_files import JsonObject, read_object
from fusionseg.runs.paths import EXPORT
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import partial_path, writable_folder, write_json
from fusionseg.utils.logs import RESULT

log = logging.getLogger("fusionseg")

RUNNER = "run.py"


@dataclass(frozen=True)
class ExportOptions:
    """The options of an export."""

    format_name: str = "onnx"
    """One of `FORMATS`."""
    output: Path | None = None
    """The folder of the model; None is a folder in the run folder, `export_onnx` for example."""
    checkpoint: str = "best"
    """The checkpoint of a run folder, "best" or "last"."""
    overrides: Sequence[str] = ()
    """`key.path=value` settings about the files of the cases that are compared, such as data.root."""
    cases: int = 2
    """Number of cases whose masks are compared with those of `predict`; 0 compares none."""
    licence: str | None = None
    """The licence of the weights, for the contract."""


@dataclass(frozen=True)
class Exported:
    """The result of an export."""

    folder: Path
    parity: JsonObject
    """The content of parity.json."""

    @property
    def is_equal(self) -> bool:
        """False if cases were compared, and their masks differ by more than `LIMIT`."""
        share = self.parity["share"]
        return share is None or share <= LIMIT


def export_runs(runs: Sequence[Path], options: ExportOptions) -> Exported:
    """Export a run, or several runs as an ensemble.

    Args:
        runs: run folders, or checkpoint files.
        options: the options of the export.

    Raises:
        UserError: a run cannot be exported in this format, a package is missing, or the folder holds other files.
    """
    _check_packages(options.format_name)
    output = _output(runs, options)
    predictor = Predictor(runs, PredictOptions("cpu", options.checkpoint, precision="fp32"))
    _refuse_own_parts(predictor, options.format_name)
    writable_folder(output, "--output")
    folder = partial_path(output)
    try:
        folder.mkdir(parents=True)
        parity = _write(runs, predictor, options, folder)
        if output.exists():
            shutil.rmtree(output)
        os.replace(folder, output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    exported = Exported(output, parity)
    _report(exported, options)
    return exported


def _write(runs: Sequence[Path], predictor: Predictor, options: ExportOptions, folder: Path) -> JsonObject:
    """Write all files of a model into a folder, and return the comparison."""
    programs = []
    for index, member in enumerate(predictor.members):
        name = f"network{'' if len(predictor.members) == 1 else f'_{index}'}{FORMATS[options.format_name].suffix}"
        shape = (len(member.channels), *member.config.data.patch)
        log.info("%s: writing %s", member.path, name)
        batch = write_program(options.format_name, member.model, shape, folder / name)
        programs.append({"program": name, "batch": batch})
    contract = contract_of(predictor, name=predictor.members[0].config.name, licence=options.licence)
    write_json(folder / CONTRACT, with_programs({**contract, "format": options.format_name}, programs))
    if options.format_name == "onnx":
        shutil.copyfile(Path(__file__).parent / "standalone" / "run_onnx.py", folder / RUNNER)
    parity = _compare(runs, predictor, options, folder)
    write_json(folder / PARITY, parity)
    return parity


def _compare(runs: Sequence[Path], predictor: Predictor, options: ExportOptions, folder: Path) -> JsonObject:
    base = {"format": options.format_name, "precision": "fp32", "limit": LIMIT}
    if options.cases == 0:
        return {**base, **not_compared("--cases 0")}
    try:
        found = cases_to_compare(runs[0], options.overrides, predictor, options.cases)
    except UserError as error:
        log.warning("masks are not compared: %s", error)
        return {**base, **not_compared(str(error))}
    log.info("comparing the masks of %d %s cases with those of predict", len(found.cases), found.which)
    program = _masks_by_runner(folder, found) if options.format_name == "onnx" else _masks_by_torch(folder, predictor)
    return {**base, **compare_masks(found, lambda case: predictor(case.images), program)}


def _masks_by_runner(folder: Path, found: CompareCases) -> MaskOf:
    """The masks that the runner makes, in this process."""
    from fusionseg.export.standalone import run_onnx

    network = run_onnx.Network(folder)
    channels = network.contract["channels"]

    def mask_of(case: Case) -> NDArray[Any]:
        if all(path.name.lower().endswith(run_onnx.SUFFIXES) for path in case.images):
            image = run_onnx.read_image(case.images, channels)
        else:  # the runner reads NIfTI alone; its other steps are compared
            source = read_image(case.images, len(channels), found.readers)
            image = run_onnx.Image(source.values, source.grid.affine, None)
        return np.asarray(network.segment(image))

    return mask_of


def _masks_by_torch(folder: Path, predictor: Predictor) -> MaskOf:
    """The masks of `predict` with the programs in place of the networks."""
    contract = read_object(folder / CONTRACT)
    with_them = Predictor.__new__(Predictor)
    with_them.__dict__.update(predictor.__dict__)
    with_them.members = [
        replace(member, model=_Program(FORMATS[contract["format"]].open(folder / entry["program"]), entry["window"]))
        for member, entry in zip(predictor.members, contract["members"], strict=True)
    ]
    return lambda case: with_them(case.images)


class _Program(nn.Module):
    """A program as a module that takes any number of windows."""

    def __init__(self, run: Run, window: JsonObject) -> None:
        super().__init__()
        self._run, self._batch = run, int(window["batch"])

    def forward(self, windows: Tensor) -> Tensor:
        return torch.cat([self._run(part) for part in windows.split(self._batch)])


def _check_packages(format_name: str) -> None:
    missing = [name for name in FORMATS[format_name].needs if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--format {format_name}: needs {', '.join(missing)}; pip install 'fusionseg[export]'")


def _output(runs: Sequence[Path], options: ExportOptions) -> Path:
    """The folder of the model.

    Raises:
        UserError: there is none for several runs, or it holds files that an export did not write.
    """
    output = options.output
    if output is None:
        if len(runs) > 1 or not runs[0].is_dir():
            raise UserError("--output: is missing; name the folder for the model, such as -o model")
        output = runs[0] / f"{EXPORT}_{options.format_name}"
    if os.path.lexists(output) and not output.is_dir():
        raise UserError(f"--output: {output}: is a file; name a folder for the model")
    if output.is_dir() and any(output.iterdir()) and "contract" not in read_object(output / CONTRACT):
        raise UserError(f"--output: {output}: holds files that an export did not write; choose another folder")
    return output


def _refuse_own_parts(predictor: Predictor, format_name: str) -> None:
    """Refuse an ONNX model whose images only fusionseg can prepare.

    Raises:
        UserError: with all such parts.
    """
    if format_name != "onnx":
        return
    problems = [f"{member.path}: {', '.join(parts)}" for member in predictor.members if (parts := refusals(member))]
    if problems:
        raise UserError(
            [
                "--format onnx: the runner cannot prepare images as these runs do, since parts of your own do it:",
                *(f"  {problem}" for problem in problems),
                "export the network alone by --format torchscript or torch",
            ]
        )


def _report(exported: Exported, options: ExportOptions) -> None:
    parity, folder = exported.parity, exported.folder
    if parity["share"] is not None:
        text = f"{parity['different']} of {parity['voxels']} voxels of {len(parity['cases'])} cases differ from predict"
        if exported.is_equal:
            log.info("%s: %s", folder / PARITY, text)
        else:
            log.error("%s: %s, more than %g of them: do not use this model", folder / PARITY, text, LIMIT)
    how = f"; python {folder / RUNNER} -i IMAGE -o MASK" if options.format_name == "onnx" else ""
    log.log(RESULT, "%s: %s, %s, %s%s", folder, options.format_name, CONTRACT, PARITY, how)
