"""The checks of the output folder of a prediction, before anything is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fusionseg.data.formats.case import Case
from fusionseg.data.formats.image_file import VolumeError
from fusionseg.data.formats.readers import Readers
from fusionseg.data.inputs.inputs import Inputs
from fusionseg.inference.mask_formats.choice import choose_format
from fusionseg.inference.masks import mask_path, refuse_same_file
from fusionseg.runs.predictions import refuse_other_file
from fusionseg.utils.errors import UserError, first_of
from fusionseg.utils.files import writable_folder


def prepare_output(due: Sequence[Case], output: Path, record: Path, *, is_shared: bool) -> None:
    """Make sure that the masks and the record can be written, before anything is predicted.

    Args:
        due: the cases that are predicted.
        output: the folder for the masks.
        record: the file of the record.
        is_shared: other processes write into the folder at the same time.

    Raises:
        UserError: the folder cannot be used.
    """
    refuse_other_file(record)
    if is_shared:  # a process must not remove the folder after its check while another one writes there
        with suppress(OSError):  # the check reports it
            output.mkdir(parents=True, exist_ok=True)
    writable_folder(output, "--output")
    refuse_same_file(due, output)


def refuse_names_of_record(cases: Sequence[Case], output: Path, format_name: str, record: Path) -> None:
    """Refuse a case whose mask has a file of the name of the record.

    Args:
        cases: all cases.
        output: the folder for the masks.
        format_name: of the masks, see `choose_format`.
        record: the file of the record.

    Raises:
        UserError: there is such a case.
    """
    for case in cases:
        mask_format = choose_format(format_name, case.images[0])
        if record in mask_format.files(mask_path(output, case, mask_format)):
            raise UserError(
                f"{case.images[0]}: {record.name} would be a file of its mask, and is the record of the prediction:"
                " rename the image, or choose another --format"
            )


def check_format(cases: Sequence[Case], format_name: str, readers: Readers) -> None:
    """Refuse a format of masks that does not suit the images, or whose packages are not installed.

    Images that cannot be read are no fault of the format, and are reported when they are predicted.

    Args:
        cases: all cases.
        format_name: of the masks, see `choose_format`.
        readers: of the images.

    Raises:
        UserError: with all such images.
    """
    problems = []
    for case in cases:
        try:
            choose_format(format_name, case.images[0]).check(case.images[0], readers)
        except VolumeError as error:
            if error.code == "package":
                raise UserError(f"--format {format_name}: {error}") from error
            if error.code == "format":
                problems.append(f"  {case.images[0]}: {error}")
    if problems:
        raise UserError([f"--format {format_name}: does not suit these inputs:", *first_of(problems)])


def refuse_input_folder(found: Inputs, inputs: Path, output: Path, format_name: str) -> None:
    """Refuse an output folder in which masks would replace the images, or would be read as images the next time.

    Args:
        found: all cases.
        inputs: the path that stands for them.
        output: the folder for the masks.
        format_name: of the masks, see `choose_format`.

    Raises:
        UserError: the folder cannot be used.
    """
    folder = output.resolve()
    for case in found.cases:
        target = mask_path(output, case, choose_format(format_name, case.images[0])).resolve()
        if any(path.resolve() == target for path in case.images):
            raise UserError(f"{output}: the masks would replace the input images: choose another --output")
    again = "and the next prediction would read them as images: choose another --output"
    series = {path.resolve() for case in found.cases for path in case.images if path.is_dir()}
    parents = {path.resolve().parent for case in found.cases for path in case.images if path not in (inputs, *series)}
    if folder in parents or (inputs.is_dir() and folder == inputs.resolve()):
        raise UserError(f"{output}: the masks would lie among the images, {again}")
    below = [*series, *([found.searched.resolve()] if found.searched is not None else [])]
    if inside := next((place for place in below if folder.is_relative_to(place)), None):
        raise UserError(f"{output}: is in the folder of the inputs, {inside}, {again}")
