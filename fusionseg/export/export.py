"""The export of runs into a folder: programs, contract, comparison with `predict`, and the runner of ONNX models."""

from __future__ import annotations

import copy
import importlib.util
import logging
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
from fusionseg.export.bundle import BUNDLE, bundle_evaluator, write_bundle_files, write_bundle_program
from fusionseg.export.card.files import card_documents
from fusionseg.export.contract import CONTRACT, contract_of, refusals, with_programs
from fusionseg.export.folder import RUNNER, model_folder, replace_folder
from fusionseg.export.parity import (
    CASE_LIMIT,
    DICE_LIMIT,
    LIMIT,
    PARITY,
    CompareCases,
    MaskOf,
    cases_to_compare,
    compare_masks,
    dice_table,
    fallen_classes,
    not_compared,
)
from fusionseg.export.postprocessing import postprocessing_documents
from fusionseg.export.programs import FORMATS, Run, has_fixed_device, write_program
from fusionseg.export.small_weights import FP16, FULL, INT8, WEIGHTS, program_megabytes, store_weights
from fusionseg.export.standalone import run_onnx
from fusionseg.inference.evaluation.cases import evaluation_config
from fusionseg.inference.predictor import PredictOptions, Predictor
from fusionseg.runs.json_files import JsonObject, read_object
from fusionseg.utils.errors import UserError
from fusionseg.utils.files import partial_path, write_json
from fusionseg.utils.logs import RESULT
from fusionseg.utils.tables import counted, plain_number

log = logging.getLogger("fusionseg")

PREPARING = ("onnx", BUNDLE)
"""Formats with a program that prepares images by itself."""


@dataclass(frozen=True)
class ExportOptions:
    """The options of an export."""

    format_name: str = "onnx"
    """One of `FORMATS`, or `BUNDLE`."""
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
    weights: str = FULL
    """The type of the weights in the file, one of `WEIGHTS`."""

    def problems(self) -> list[str]:
        """Values that cannot be used, and combinations that have no meaning; empty if there are none."""
        found = []
        if self.cases < 0:
            found.append(f"--cases: expected a whole number from 0, got {self.cases}")
        if self.weights not in WEIGHTS:
            found.append(f"--weights: expected {', '.join(WEIGHTS)}, got {self.weights!r}")
        elif self.weights != FULL and self.format_name != "onnx":
            found.append(
                f"--weights {self.weights}: only ONNX programs have small weights (expected --format onnx, got"
                f" {self.format_name}); remove --weights, or take --format onnx"
            )
        return found


@dataclass(frozen=True)
class Exported:
    """The result of an export."""

    folder: Path
    parity: JsonObject
    """The content of parity.json."""
    is_written: bool = True
    """False if the masks differ, and the folder still has an earlier export."""

    @property
    def is_equal(self) -> bool:
        """False if cases were compared, and more voxels of their masks differ than rounding explains. With small
        weights there is no such limit."""
        return _is_equal(self.parity)


def export_runs(runs: Sequence[Path], options: ExportOptions) -> Exported:
    """Export a run, or several runs as an ensemble.

    Args:
        runs: run folders, or checkpoint files.
        options: the options of the export.

    Raises:
        UserError: a run cannot be exported in this format, an option or a setting is wrong, a package is missing, or
            the folder cannot be written or replaced.
        WriteError: the disk is full, for example.
    """
    if problems := options.problems():
        raise UserError(problems)
    _check_packages(options.format_name)
    kind = options.format_name if options.weights == FULL else f"{options.format_name}_{options.weights}"
    output = model_folder(runs, options.output, kind)
    if options.overrides:
        evaluation_config(runs[0], options.overrides)  # a wrong setting is refused before the export
    predictor = Predictor(runs, PredictOptions("cpu", options.checkpoint, precision="fp32"))
    _refuse_own_parts(predictor, options.format_name)
    folder = partial_path(output)
    try:
        folder.mkdir(parents=True)
        parity = _write(runs, predictor, options, folder)
        is_written = _is_equal(parity) or not (output / CONTRACT).exists()
        if is_written:
            replace_folder(folder, output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    exported = Exported(output, parity, is_written)
    _report(exported, options)
    return exported


def _is_equal(parity: JsonObject) -> bool:
    return parity["allowed"] is None or bool(parity["different"] <= parity["allowed"])


def _write(runs: Sequence[Path], predictor: Predictor, options: ExportOptions, folder: Path) -> JsonObject:
    """Write all files of a model into a folder, and return the comparison."""
    is_bundle = options.format_name == BUNDLE
    programs = []
    for index, member in enumerate(predictor.members):
        shape = (len(member.channels), *member.config.data.patch)
        if is_bundle:
            log.info("%s: writing the bundle", member.path)
            programs.append(write_bundle_program(member.model, shape, folder))
            continue
        name = f"network{'' if len(predictor.members) == 1 else f'_{index}'}{FORMATS[options.format_name].suffix}"
        log.info("%s: writing %s", member.path, name)
        batch = write_program(options.format_name, member.model, shape, folder / name)
        if options.weights != FULL:
            store_weights(folder / name, options.weights, shape)
        if options.format_name == "torchscript" and has_fixed_device(folder / name):
            log.warning("%s: runs on the CPU alone, because of this network; --format torch for a GPU", name)
        programs.append({"program": name, "batch": batch})
    contract = contract_of(predictor, name=predictor.members[0].config.name, licence=options.licence)
    contract = with_programs({**contract, "format": options.format_name, "weights": options.weights}, programs)
    write_json(folder / CONTRACT, contract)
    if is_bundle:
        steps = {member.path: member.step for member in predictor.members}
        documents = {**card_documents(runs, options.licence, steps), **postprocessing_documents(runs)}
        write_bundle_files(folder, contract, documents)
    if options.format_name == "onnx":
        shutil.copyfile(Path(__file__).parent / "standalone" / "run_onnx.py", folder / RUNNER)
    parity = _compare(runs, predictor, options, folder)
    write_json(folder / PARITY, parity)
    return parity


def _compare(runs: Sequence[Path], predictor: Predictor, options: ExportOptions, folder: Path) -> JsonObject:
    base: JsonObject = {"format": options.format_name, "precision": "fp32", "weights": options.weights}
    base |= {"limit": LIMIT} if options.weights == FULL else {"dice_limit": DICE_LIMIT}
    if options.cases == 0:
        return {**base, **not_compared("--cases 0")}
    prepares = options.format_name in PREPARING
    try:  # the runner refuses a case that lacks a channel
        found = cases_to_compare(runs[0], options.overrides, predictor, options.cases, complete=prepares)
    except UserError as error:
        return {**base, **not_compared(str(error))}
    log.info("comparing the masks of %d %s cases with those of predict", len(found.cases), found.which)
    reader: dict[str, str] = {}
    program = _masks_by_runner(folder, found, reader) if prepares else _masks_by_torch(folder, predictor)
    compared = compare_masks(found, lambda case: predictor(case.images), program)
    if options.weights != FULL:  # rounded weights change more voxels than rounded sums
        compared["allowed"] = None
    return {**base, **compared, **({"reader_not_compared": reader} if prepares else {})}


def _masks_by_runner(folder: Path, found: CompareCases, reader: dict[str, str]) -> MaskOf:
    """The masks that the runner of an ONNX model or a bundle makes, in this process.

    Args:
        folder: of the model.
        found: the cases.
        reader: receives the names of the cases whose files fusionseg read instead of the runner, and the reason. The
            other steps of the runner are compared all the same.
    """
    contract = read_object(folder / CONTRACT)
    is_bundle = contract["format"] == BUNDLE
    segment = bundle_evaluator(folder, contract).segment if is_bundle else run_onnx.Network(folder).segment
    channels = contract["channels"]

    def mask_of(case: Case) -> NDArray[Any]:
        try:
            image = run_onnx.read_image(case.images, channels)
        except run_onnx.RunError as error:
            source = read_image(case.images, len(channels), found.readers)
            image = run_onnx.Image(source.values, source.grid.affine, None)
            reader[case.name] = str(error)
            log.warning("%s: the reader of the runner is not compared: %s", case.name, error)
        try:
            return np.asarray(segment(image))
        except run_onnx.RunError as error:
            raise UserError(f"--format {contract['format']}: {case.name}: {error}") from None

    return mask_of


def _masks_by_torch(folder: Path, predictor: Predictor) -> MaskOf:
    """The masks of `predict` with the programs in place of the networks."""
    contract = read_object(folder / CONTRACT)
    with_them = copy.copy(predictor)
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
    needs = ("fire",) if format_name == BUNDLE else FORMATS[format_name].needs
    missing = [name for name in needs if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--format {format_name}: needs {', '.join(missing)}; pip install 'fusionseg[export]'")


def _refuse_own_parts(predictor: Predictor, format_name: str) -> None:
    """Refuse a model whose images only fusionseg can prepare, and an ensemble as a bundle.

    Raises:
        UserError: with all such parts.
    """
    if format_name not in PREPARING:
        return
    if format_name == BUNDLE and len(predictor.members) > 1:
        raise UserError(
            f"--format {BUNDLE}: has one network; export each run, or the ensemble by --format onnx or fseg"
        )
    problems = [f"{member.path}: {', '.join(parts)}" for member in predictor.members if (parts := refusals(member))]
    if problems:
        raise UserError(
            [
                f"--format {format_name}: its program cannot prepare images as these runs do, by parts of your own:",
                *(f"  {problem}" for problem in problems),
                "export the network alone by --format torchscript or torch",
            ]
        )


def _report(exported: Exported, options: ExportOptions) -> None:
    parity, folder = exported.parity, exported.folder
    if parity["share"] is None:
        level = logging.WARNING if options.cases else logging.INFO
        log.log(level, "%s: masks were not compared: %s", folder / PARITY, parity["not_compared"])
    elif options.weights != FULL:
        _report_dice(folder, parity, options.weights)
    else:
        text = f"{parity['different']} of {parity['voxels']} voxels of {len(parity['cases'])} cases differ from predict"
        if exported.is_equal:
            log.info("%s: %s", folder / PARITY, text)
        else:
            limit = f"{text}, more than {parity['allowed']} (1 in {1 / LIMIT:,.0f}, or {CASE_LIMIT} for each case)"
            if not exported.is_written:
                log.error("%s: %s: the new model is not used, the earlier export is kept", folder, limit)
                return
            log.error("%s: %s: do not use this model", folder / PARITY, limit)
    how = f"; python {folder / RUNNER} -i IMAGE -o MASK" if options.format_name == "onnx" else ""
    kind = options.format_name
    if options.weights != FULL:
        kind += f" with {options.weights} weights ({program_megabytes(folder):.1f} MB)"
    log.log(RESULT, "%s: %s, %s, %s%s", folder, kind, CONTRACT, PARITY, how)


def _report_dice(folder: Path, parity: JsonObject, weights: str) -> None:
    """Report the difference that small weights make."""
    cases = counted(len(parity["cases"]), f"{parity['which']} case")
    share = f"{plain_number(100 * parity['share'])} %"
    text = f"{parity['different']} of {parity['voxels']} voxels of {cases} ({share}) differ from predict"
    log.log(RESULT, "%s: %s", folder / PARITY, text)
    if not parity["dice_by_class"]:
        log.warning("%s: the difference of the Dice is not known: no label of these cases can be used", folder / PARITY)
        return
    log.log(RESULT, "%s", dice_table(parity, weights))
    if fallen := fallen_classes(parity):
        other = f"--weights {FP16} or {FULL}" if weights == INT8 else f"--weights {FULL}"
        log.warning(
            "%s: %s weights lower the Dice by more than %s: %s; compare more cases by --cases N, or take %s",
            *(folder, weights, DICE_LIMIT, ", ".join(fallen), other),
        )
