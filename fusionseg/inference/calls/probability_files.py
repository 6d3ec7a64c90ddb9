"""The files of probabilities of a call: their names, and the files that must not be replaced."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fusionseg.data.formats.case import Case
from fusionseg.data.formats.problems import CaseError, Problem
from fusionseg.inference.loaded_case import LoadedCase
from fusionseg.inference.mask_formats.choice import choose_format
from fusionseg.inference.mask_formats.probabilities import PROBABILITY_FORMATS, ProbabilityFormat
from fusionseg.inference.masks import MaskOrigin, mask_path, parse_origin
from fusionseg.utils.errors import UserError, first_of
from fusionseg.utils.files import file_name
from fusionseg.utils.machine import available_memory_bytes
from fusionseg.utils.tables import gigabytes

_SHARE_OF_MEMORY = 0.125
"""Share of the free memory above which an array must be written before the next case is predicted."""


class ProbabilityFiles:
    """The files of one format in a folder."""

    def __init__(self, output: Path, format_name: str) -> None:
        """Args:
        output: the folder for the masks and the probabilities.
        format_name: one of `PROBABILITY_FORMATS`.
        """
        self.format: ProbabilityFormat = PROBABILITY_FORMATS[format_name]
        self._output = output

    def path(self, case: Case) -> Path:
        """The file of a case."""
        return self._output / file_name(case.name, self.format.suffix)

    def is_made_with(self, case: Case, mask: MaskOrigin) -> bool:
        """Tell whether the file of a case is there, made together with its mask.

        Args:
            case: the case.
            mask: the origin of the mask that is there.
        """
        target = self.path(case)
        return os.path.exists(target) and parse_origin(self.format.read_origin(target)) == mask

    def check(self, cases: Sequence[Case], mask_format: str) -> None:
        """Refuse files that another program wrote, or that belong to another image or are masks.

        Args:
            cases: of the call.
            mask_format: of the masks, see `choose_format`.

        Raises:
            UserError: with all of them.
        """
        masks = {mask_path(self._output, case, choose_format(mask_format, case.images[0])): case for case in cases}
        problems = []
        for case in cases:
            target = self.path(case)
            if target in masks:
                problems.append(f"  {target}: would be the mask of the case {masks[target].name} too: rename the image")
            elif os.path.lexists(target) and not self._is_own(case):
                problems.append(f"  {target}: was not written by fusionseg predict for this image")
        if problems:
            first = f"--probabilities: {self._output}: these files are not replaced: choose another folder"
            raise UserError([first, *first_of(problems)])

    def _is_own(self, case: Case) -> bool:
        origin = parse_origin(self.format.read_origin(self.path(case)))
        return origin is not None and (not _is_there(case) or origin.is_of(case))


def check_memory(case: Case, loaded: LoadedCase, num_outputs: int) -> None:
    """Refuse a case whose probabilities do not fit into the free memory.

    Raises:
        CaseError: with the numbers.
    """
    x, y, z = loaded.shape
    needed, free = 4.0 * num_outputs * x * y * z, available_memory_bytes()
    if needed > free:
        text = f"the probabilities take {gigabytes(needed)}, and {gigabytes(free)} are free"
        remedy = "predict it without probabilities, or use a machine with more memory"
        raise CaseError([Problem("error", case.name, str(case.images[0]), "memory", text, remedy)])


def is_large(num_bytes: int) -> bool:
    """Tell whether an array must not wait in memory for the writer."""
    return num_bytes > available_memory_bytes() * _SHARE_OF_MEMORY


def _is_there(case: Case) -> bool:
    return all(os.access(path, os.R_OK) for path in case.images)
