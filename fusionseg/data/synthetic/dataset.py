"""Data sets without patient data, for demonstrations and tests: the vessels of a chest, organs, or nested regions.

Structures that look like the labelled ones are drawn and not labelled, so a threshold alone does not solve the task. A
volume is a function of (form, seed, case, size): the same command writes the same bytes, and case 3 of 24 is case 3 of
100.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib

from fusionseg.data.synthetic.forms import DEFAULT_FORM, FORMS, Form
from fusionseg.utils.errors import UserError, WriteError, suggest
from fusionseg.utils.files import PARTIAL, whole_file, writable_folder, write_text
from fusionseg.utils.machine import available_cpus
from fusionseg.utils.parallel import WorkerDied, map_cases

# Rises when the same parameters give other volumes, so that a data set never mixes two versions.
GENERATOR_VERSION = 1
# Written first and removed last: it marks an interrupted data set, which the next call completes.
_MARKER = ".fusionseg_synth.json"


def write_dataset(
    out: Path,
    *,
    form: str = DEFAULT_FORM,
    cases: int = 24,
    size: int = 96,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a data set in MSD layout (dataset.json, imagesTr/, labelsTr/).

    The same call completes an interrupted one: finished volumes are kept, and dataset.json is written last.

    Args:
        out: folder of the data set.
        form: name of the form, a key of `FORMS`.
        cases: number of cases.
        size: voxels in a row.
        seed: of the data set.
        workers: number of processes; None is one for each CPU that this process may use.
        progress: called in this process with (cases done, cases).

    Returns:
        The path of dataset.json.

    Raises:
        UserError: impossible parameters, or `out` holds other files.
        WriteError: writing failed on the way; finished volumes stay.
    """
    out = Path(out)
    workers = available_cpus() if workers is None else workers
    problems = [] if form in FORMS else [f"synth: there is no form {form!r}; {suggest(form, FORMS)}"]
    least_size = FORMS[form].least_size if form in FORMS else 1
    problems += [
        f"synth: {name} is {value}; give at least {least}"
        for name, value, least in (
            ("size", size, least_size),
            ("cases", cases, 1),
            ("seed", seed, 0),
            ("workers", workers, 1),
        )
        if value < least
    ]
    parameters: dict[str, int | str] = {"version": GENERATOR_VERSION, "seed": seed, "size": size, "cases": cases}
    if form != DEFAULT_FORM:  # the first form has no name in the files, which older versions wrote too
        parameters["form"] = form
    problems += _conflict(out, parameters)
    if problems:
        raise UserError(problems)

    dataset_json = out / "dataset.json"
    writable_folder(out, "synth")
    _remove_partial_files(out)
    if not dataset_json.exists():
        write_text(out / _MARKER, json.dumps(parameters) + "\n")

    todo = [index for index in range(cases) if not all(path.is_file() for path in _case_paths(out, index))]
    if progress:
        progress(cases - len(todo), cases)
    died: WorkerDied | None = None
    write = partial(_write_case, out, form, size, seed)
    done = cases - len(todo)
    for _, outcome in map_cases(write, todo, workers=workers):
        if isinstance(outcome, WorkerDied):
            died = outcome  # the other cases are written first
            continue
        if isinstance(outcome, WriteError):
            message = (
                f"{outcome.strerror}; {done} of {cases} cases are written, and the same command continues from there"
            )
            raise WriteError(outcome.errno, message, str(out))
        if isinstance(outcome, Exception):
            raise outcome
        done += 1
        if progress:
            progress(done, cases)
    if died is not None:
        raise RuntimeError(
            f"synth: a worker process died while writing {out}, probably for lack of memory: the same call "
            f"with fewer than {workers} workers completes the data set"
        ) from died

    _remove_partial_files(out)
    if not dataset_json.exists():
        write_text(dataset_json, json.dumps(_description(FORMS[form], cases, parameters), indent=2) + "\n")
    (out / _MARKER).unlink(missing_ok=True)
    return dataset_json


def _conflict(out: Path, parameters: dict[str, int | str]) -> list[str]:
    """The reason not to write to `out`; none if the folder is new, is empty, or holds this data set."""
    advice = "choose another folder or delete it"
    if not out.exists():
        return []
    if not out.is_dir():
        return [f"synth: {out} is a file: {advice}"]
    if all(entry.name.startswith(PARTIAL) for entry in out.iterdir()):
        return []
    found: object = None
    for path in (out / "dataset.json", out / _MARKER):
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if path.name == "dataset.json":
            found = found.get("fusionseg_synth") if isinstance(found, dict) else None
        break
    if found == parameters:
        return []
    if not isinstance(found, dict):
        return [f"synth: {out} holds files that synth did not write: {advice}"]
    asked, there = ({"form": DEFAULT_FORM, **named} for named in (parameters, found))
    different = ", ".join(
        f"{key} {there.get(key)} (asked for: {value})" for key, value in asked.items() if there.get(key) != value
    )
    return [f"synth: {out} holds a synthetic data set with {different}: {advice}"]


def _write_case(out: Path, form: str, size: int, seed: int, index: int) -> None:
    case = FORMS[form].make_case(size, seed, index)
    image_path, label_path = _case_paths(out, index)
    for path, array in ((label_path, case.label), (image_path, case.image)):
        volume: Any = nib.Nifti1Image(array, case.affine)
        volume.header.set_xyzt_units("mm", "sec")
        volume.set_qform(case.affine, code=1)
        volume.set_sform(case.affine, code=1)
        # Not nib.save: its gzip header carries the time of day, and the bytes would differ from run to run.
        with whole_file(path) as temporary:
            temporary.write_bytes(gzip.compress(volume.to_bytes(), compresslevel=4, mtime=0))


def _remove_partial_files(out: Path) -> None:
    """Remove the temporary files of killed processes."""
    for leftover in out.rglob(f"{PARTIAL}*"):
        leftover.unlink()


def _case_paths(out: Path, index: int) -> tuple[Path, Path]:
    name = f"synth_{index:03d}.nii.gz"  # the width does not follow the number of cases
    return out / "imagesTr" / name, out / "labelsTr" / name


def _description(form: Form, cases: int, parameters: dict[str, int | str]) -> dict[str, object]:
    names = [_case_paths(Path(), index)[0].name for index in range(cases)]
    return {
        "name": form.title,
        "description": form.description,
        "reference": "fusionseg",
        "licence": "CC0",
        "release": "1.0",
        "tensorImageSize": "3D" if len(form.channels) == 1 else "4D",
        "modality": {str(index): name for index, name in enumerate(form.channels)},
        "labels": {str(value): name for value, name in enumerate(form.labels)},
        "numTraining": len(names),
        "numTest": 0,
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
        "test": [],
        "fusionseg_synth": parameters,
    }
