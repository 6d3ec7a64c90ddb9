"""The masks of an evaluation, which its folder keeps: what was scored can be looked at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from fusionseg.data.formats.case import Case
from fusionseg.data.formats.image_file import VolumeError
from fusionseg.data.formats.problems import CaseError, Problem
from fusionseg.data.formats.readers import Readers
from fusionseg.inference.mask_formats.choice import FORMATS
from fusionseg.inference.mask_formats.mask import Mask
from fusionseg.inference.masks import MaskOrigin, mask_path, origin_of, predictor_hash, read_origin
from fusionseg.inference.postprocessing.steps import PostProcessing
from fusionseg.inference.predictor import Predictor
from fusionseg.runs.evaluations import MASKS, withdraw_summary
from fusionseg.utils.errors import UserError, first_of

_FORMAT = FORMATS["nifti"]


class KeptMasks:
    """The folder of the masks of an evaluation. A file that an evaluation did not write is never replaced."""

    def __init__(
        self, folder: Path, predictor: Predictor, readers: Readers, postprocessing: PostProcessing | None = None
    ) -> None:
        """Args:
        folder: of the evaluation.
        predictor: that makes the masks.
        readers: of the images.
        postprocessing: of the masks.
        """
        self.evaluation = folder
        self.folder = folder / MASKS
        self.scheme = predictor.scheme
        self.readers = readers
        self._made_by = predictor_hash(predictor, postprocessing=postprocessing.to_json() if postprocessing else None)

    def check(self, cases: Sequence[Case]) -> None:
        """Refuse files in the place of the masks that no evaluation wrote.

        Args:
            cases: of the evaluation.

        Raises:
            UserError: with all of them.
        """
        problems = []
        for path in (self.path(case) for case in cases):
            if os.path.lexists(path) and not _is_own(path):
                problems.append(f"  {path}: was not written by fusionseg, or was changed since")
        if problems:
            first = f"{self.folder}: these files are not replaced: move them away, or keep no masks by --no-masks"
            raise UserError([first, *first_of(problems)])

    def path(self, case: Case) -> Path:
        """The file of the mask of a case."""
        return mask_path(self.folder, case, _FORMAT)

    def write(self, case: Case, outputs: NDArray[Any]) -> None:
        """Write the mask of a case, in the geometry of its image and with the values of label files.

        Args:
            case: the case.
            outputs: the prediction, see `Predictor.predict_outputs`.

        Raises:
            CaseError: no mask can be written for this image.
            WriteError: the file cannot be written.
        """
        withdraw_summary(self.evaluation)  # the scores of an earlier evaluation are not those of this mask
        mask = Mask(self.scheme.to_mask(outputs), self.scheme.value_names, case.images[0], self.readers)
        try:
            _FORMAT.write(mask, self.path(case), lambda digest: str(origin_of(case, self._made_by, digest)))
        except VolumeError as error:
            text, file = f"no mask can be written ({error})", str(case.images[0])
            raise CaseError([Problem("error", case.name, file, "mask", text, "leave it out by --no-masks")]) from error

    def find(self, case: Case) -> NDArray[np.uint8] | None:
        """Read the mask of a case as `read` does, if this predictor made it of this image and nobody changed it.

        Returns:
            The mask; None without such a mask.
        """
        origin = self._own_origin(case)
        return self.read(case) if origin is not None and origin.is_of(case) else None

    def find_outputs(self, case: Case) -> NDArray[np.uint8] | None:
        """Read the mask of a case as the class indices that this predictor gave for the image as it is now.

        Returns:
            (X, Y, Z); None without such a mask, and with sigmoid outputs, whose masks hide each other.
        """
        if self.scheme.sigmoid:
            return None
        origin = self._own_origin(case)
        return self.read(case) if origin is not None and origin.has_content_of(case) else None

    def _own_origin(self, case: Case) -> MaskOrigin | None:
        """The origin of the mask of a case, if this predictor made it and nobody changed it."""
        try:
            origin = read_origin(self.path(case), _FORMAT)
        except (VolumeError, OSError):
            return None
        return origin if origin is not None and origin.predictor == self._made_by else None

    def read(self, case: Case) -> NDArray[np.uint8]:
        """Read the mask of a case: the number of the output at each voxel, from 1; 0 is background.

        Regions are painted over each other in their order.
        """
        number = np.zeros(int(max(*self.scheme.region_order, 0)) + 1, np.uint8)
        for position, value in enumerate(self.scheme.region_order, start=1):
            number[value] = position
        numbers: NDArray[np.uint8] = number[np.asarray(nib.load(self.path(case)).dataobj)]
        return numbers

    def remove_others(self, cases: Sequence[Case]) -> None:
        """Delete masks that an earlier evaluation wrote, except those of some cases.

        Args:
            cases: with a mask of this evaluation.
        """
        kept = {self.path(case) for case in cases}
        for path in sorted(self.folder.glob(f"*{_FORMAT.suffix}")):
            if path not in kept and _is_own(path):
                path.unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def _is_own(path: Path) -> bool:
    try:
        return read_origin(path, _FORMAT) is not None
    except (VolumeError, OSError):
        return False
