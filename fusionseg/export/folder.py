"""The folder of an exported model: checks before the export, and the replacement of an earlier export."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fusionseg.export.contract import CONTRACT
from fusionseg.export.parity import PARITY
from fusionseg.runs.json_files import read_object
from fusionseg.runs.paths import CARD, CLAIM, EXPORT, POSTPROCESSING
from fusionseg.runs.trust.links import refuse_links
from fusionseg.utils.errors import UserError, some_of
from fusionseg.utils.files import partial_path, writable_folder

log = logging.getLogger("fusionseg")

RUNNER = "run.py"
_OWN_FILES = re.compile(
    rf"{re.escape(CONTRACT)}|{re.escape(PARITY)}|{re.escape(RUNNER)}|network(_\d+)?\.(onnx|onnx\.data|ts|pt2)"
    rf"|configs/(inference|metadata)\.json|docs/(README\.md|license\.txt|{re.escape(CARD)}"
    rf"|{re.escape(CLAIM)}|{re.escape(POSTPROCESSING)})"
    r"|models/model\.(ts|pt2|safetensors)|scripts/(__init__|volumes|segmentation)\.py|scripts/__pycache__/[^/]+"
)
"""Paths in the folder of a model, or of a bundle."""


def model_folder(runs: Sequence[Path], output: Path | None, kind: str) -> Path:
    """Choose the folder of a model, and make sure that it can be written or replaced.

    Args:
        runs: run folders, or checkpoint files.
        output: the folder that the user named; None is a folder in the run folder.
        kind: of the model, for the name of a folder that the user did not name: "onnx", "onnx_int8".

    Returns:
        The folder, with links resolved: the target of a link is replaced, not the link.

    Raises:
        UserError: none is named for several runs; it is a file or a mount point; it holds files that an export did
            not write; the folder around it cannot be written; or a file of a run is a link to a file elsewhere.
    """
    refuse_links(*runs)
    if output is None:
        if len(runs) > 1 or not runs[0].is_dir():
            raise UserError("--output: is missing; name the folder for the model, such as -o model")
        output = runs[0] / f"{EXPORT}_{kind}"
    folder = Path(os.path.realpath(output))
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"--output: {output}: is a file; name a folder for the model")
    if os.path.ismount(folder):
        raise UserError(f"--output: {output}: is a mount point, which cannot be replaced; name a folder in it")
    if others := _other_files(folder):
        raise UserError(
            f"--output: {output}: holds files that an export did not write ({some_of(others)}); move them away, or"
            " choose another folder"
        )
    writable_folder(folder.parent, "--output")  # a new model is written beside the earlier one
    return folder


def _other_files(folder: Path) -> list[str]:
    """Names of the files that an export did not write, in alphabetic order; without a contract, all files."""
    files = (Path(at, name) for at, _, names in os.walk(folder) for name in names)
    names = sorted(str(file.relative_to(folder)) for file in files)
    if names and "contract" not in read_object(folder / CONTRACT):
        return names
    return [name for name in names if not _OWN_FILES.fullmatch(name)]


def replace_folder(new: Path, folder: Path) -> None:
    """Put a new folder in the place of an earlier one. If that fails, the earlier one is put back.

    Args:
        new: on the same file system.
        folder: the place. It need not exist.

    Raises:
        OSError: a folder cannot be renamed.
    """
    old = partial_path(folder)
    try:
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    except BaseException:
        if old.exists() and not folder.exists():
            with suppress(OSError):  # the first error is the one to report
                os.replace(old, folder)
        raise
    finally:
        if folder.exists() and old.exists():
            shutil.rmtree(old, ignore_errors=True)
            if old.exists():
                log.warning("%s: the earlier export could not be removed; remove it", old)
