"""The cases of an evaluation that exists: their images, labels and predictions, to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionseg.data.formats.case_reader import read_grid, read_image
from fusionseg.data.formats.dataset import Case
from fusionseg.data.formats.geometry import voxel_sizes
from fusionseg.data.labels.scheme import IGNORE, LabelScheme
from fusionseg.data.preprocessing.prepare import open_configured
from fusionseg.data.preprocessing.resampling import find_reorientation
from fusionseg.inference.evaluation.kept_masks import KeptMasks
from fusionseg.inference.evaluation.opening import EvaluationOptions, open_evaluation
from fusionseg.inference.evaluation.scoring import Scorer
from fusionseg.inference.postprocessing.files import NONE
from fusionseg.inference.predictor import PredictOptions, Predictor
from fusionseg.observability.case_pictures import IGNORED
from fusionseg.observability.planes import Spacing
from fusionseg.runs.evaluations import evaluated_run
from fusionseg.utils.errors import UserError


@dataclass(frozen=True)
class LabelledVolume:
    """The image and the label of a case, with the axes left to right, back to front, feet to head (RAS)."""

    image: NDArray[np.float32]
    """The first channel that is not constant, (X, Y, Z)."""
    label: NDArray[np.uint8]
    """The number of the output at each voxel, from 1; 0 is background, `IGNORED` is not annotated. Regions are drawn
    over each other in their order."""
    spacing_mm: Spacing


class EvaluatedCases:
    """The cases of an evaluation, found again by their names, and the network that predicted them."""

    def __init__(
        self, folder: Path, summary: Mapping[str, Any], *, device: str = "auto", overrides: Sequence[str] = ()
    ) -> None:
        """Open the data set and load the network.

        Args:
            folder: of the evaluation.
            summary: of the evaluation, of a segmentation.
            device: "auto", "cuda" or "cpu".
            overrides: `key.path=value` settings, such as data.root.

        Raises:
            UserError: the evaluation cannot be repeated: the data set or the weights are gone, or the weights are
                others now.
        """
        request = summary.get("request")
        if not isinstance(request, Mapping):
            raise UserError("an earlier version wrote the evaluation without its request; evaluate again")
        options = EvaluationOptions(
            PredictOptions(
                device=device,
                checkpoint=str(request.get("checkpoint", "last")),
                overlap=request.get("overlap"),
                flips=bool(request.get("tta")),
                precision=request.get("precision"),
            ),
            overrides,
            dataset_root=request.get("dataset"),
            others=[Path(other) for other in request.get("with", ())],
            include_trained=bool(request.get("include_trained")),
            postprocess=str(request.get("postprocess") or NONE),
        )
        run = evaluated_run(folder)
        opened = open_evaluation(run, options)
        if opened.request.to_json() != dict(request) and not overrides:
            raise UserError("the options of the evaluation cannot be repeated; evaluate again")
        postprocessing = opened.postprocessing
        if postprocessing is not None and not postprocessing.is_recorded_in(summary):
            raise UserError(f"{postprocessing.path}: has other steps than those of the evaluation; evaluate again")
        steps = None if postprocessing is None else postprocessing.steps
        predictor = Predictor([run, *options.others], options.prediction)
        step = predictor.members[0].step
        if step != summary.get("step"):
            raise UserError(
                f"the weights are those of step {step} now, and the evaluation is of step {summary.get('step')}:"
                " evaluate again"
            )
        dataset = open_configured(opened.config.data) if opened.dataset is None else opened.dataset
        self.scheme: LabelScheme = predictor.scheme
        self._scorer = Scorer(predictor, dataset, own=opened.dataset is None, postprocessing=steps)
        self._kept = KeptMasks(folder, predictor, dataset.readers, steps)
        self._cases = {case.name: case for case in (*dataset.training, *dataset.testing) if case.label is not None}

    def __contains__(self, name: str) -> bool:
        return name in self._cases

    def read(self, name: str) -> LabelledVolume:
        """Read the image and the label of a case.

        Args:
            name: of the case.

        Raises:
            CaseError: the image or the label cannot be used.
        """
        case = self._cases[name]
        image = read_image(case.images, readers=self._scorer.dataset.readers)
        channel = next((index for index, varies in enumerate(image.varies) if varies), 0)
        turn, affine = find_reorientation(image.grid.affine, image.grid.shape, "RAS")
        numbers = self._numbers(self._scorer.label(case))
        return LabelledVolume(turn(image.values[channel]), turn(numbers), voxel_sizes(affine))

    def predict(self, name: str) -> NDArray[np.uint8]:
        """The prediction of a case: the number of the output at each voxel, as `LabelledVolume.label`.

        The mask that the evaluation kept is read. Without one the case is predicted again.

        Args:
            name: of the case.

        Raises:
            CaseError: the image cannot be used.
        """
        case = self._cases[name]
        drawn = self._kept.find(case)
        return self._turned(case, self._scorer.drawn_prediction(case).astype(np.uint8) if drawn is None else drawn)

    def _turned(self, case: Case, volume: NDArray[np.uint8]) -> NDArray[np.uint8]:
        grid = read_grid(case.images, self._scorer.dataset.readers)
        turned: NDArray[np.uint8] = find_reorientation(grid.affine, grid.shape, "RAS")[0](volume)
        return turned

    def _numbers(self, label: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Numbers of the outputs, from class indices."""
        membership = self.scheme.membership_of_indices
        number = (membership * np.arange(1, len(membership) + 1)[:, None]).max(axis=0, initial=0).astype(np.uint8)
        number[IGNORE] = IGNORED
        numbers: NDArray[np.uint8] = number[label]
        return numbers
