"""`fusionseg predict`: masks as NIfTI in each input's own geometry."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from fusionseg.data.dataset import Case, find_inputs
from fusionseg.errors import UserError
from fusionseg.files import whole_file
from fusionseg.inference.predictor import PredictOptions, Predictor
from fusionseg.telemetry.progress import counting_progress

log = logging.getLogger("fusionseg")


def predict(
    runs: Sequence[Path], inputs: Path, output: Path, options: PredictOptions, *, skip_existing: bool = False
) -> dict[str, str]:
    """Predict every image at `inputs` into `output`/<case>.nii.gz.

    Returns:
        The cases that failed, with the reason; the others have their mask.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: is a file; --output names the folder that receives the masks")
    predictor = Predictor(runs, options)
    cases = find_inputs(inputs, len(predictor.channels))
    _keep_inputs(cases, output)
    failed: dict[str, str] = {}
    with counting_progress("predicting") as progress:
        for done, case in enumerate(cases):
            progress(done, len(cases))
            target = output / f"{case.name}.nii.gz"
            if skip_existing and target.exists():
                continue
            try:
                mask = predictor(case.images)
            except ValueError as error:
                failed[case.name] = f"{', '.join(map(str, case.images))}: {error}"
                log.error("%s", failed[case.name])
                continue
            write_mask(mask, case.images[0], target)
        progress(len(cases), len(cases))
    log.info("%s: %d masks (labels: %s)", output, len(cases) - len(failed), predictor.labels)
    return failed


def write_mask(mask: NDArray[np.uint8], like: Path, target: Path) -> None:
    """Write a mask with the affine, the codes and the units of the image it belongs to."""
    source = nib.load(like)
    header = source.header.copy()
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header["cal_min"], header["cal_max"] = 0, 0
    image = type(source)(mask, source.affine, header)
    with whole_file(target) as temporary:
        nib.save(image, temporary)


def _keep_inputs(cases: Sequence[Case], output: Path) -> None:
    """Refuse to write over the images themselves."""
    for case in cases:
        for path in case.images:
            if path.resolve() == (output / f"{case.name}.nii.gz").resolve():
                raise UserError(f"{output}: the masks would replace the input images: choose another --output")
