"""The mask of one image with the post-processing that a caller asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.formats.case_reader import Image
from fusionseg.inference.postprocessing.files import asked_postprocessing, refuse_other_classes
from fusionseg.inference.predictor import Predictor


def predict_processed(
    predictor: Predictor, image: Sequence[Path] | Image, asked: str
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Predict the mask of an image, as `Predictor.__call__` does, and process it.

    Args:
        predictor: the network, or an ensemble.
        image: one file for each channel, or one file; or an image in memory.
        asked: see `asked_postprocessing`.

    Returns:
        (X, Y, Z), with the values of label files.

    Raises:
        CaseError: the image cannot be read or prepared.
        UserError: see `asked_postprocessing` and `refuse_other_classes`.
    """
    stored = asked_postprocessing(asked, [member.path for member in predictor.members])
    if stored is None:
        return predictor(image)
    refuse_other_classes(stored.path, stored.steps, predictor.scheme)
    case = predictor.load(image)
    outputs = stored.steps.apply(predictor.outputs_of(case), predictor.scheme, case.spacing_mm)
    return predictor.scheme.to_mask(outputs)
