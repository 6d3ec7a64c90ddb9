"""The scores of one case: its mask is predicted and compared with its label."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fusionseg.data.formats.case_reader import read_grid, read_label
from fusionseg.data.formats.channel_names import channel_order
from fusionseg.data.formats.dataset import Case, Dataset
from fusionseg.data.formats.geometry import voxel_sizes
from fusionseg.data.labels.matching import match_classes
from fusionseg.data.labels.scheme import IGNORE, LabelScheme
from fusionseg.inference.evaluation.measuring import CaseMeasurer, PredictedCase, Score
from fusionseg.inference.postprocessing.steps import PostProcessing
from fusionseg.inference.predictor import Predictor
from fusionseg.metrics.outputs import masks_of
from fusionseg.observability.pictures import topmost
from fusionseg.utils.errors import UserError

log = logging.getLogger("fusionseg")

# Remedies in messages about labels or channels.
_NAMES_DIFFER = "if they mean the same, use the same names in dataset.json or data.labels"
_NAMES_CHANGED = (
    "the names have changed since; restore them, or name the data set by --dataset, which matches them by name"
)


class Scorer:
    """Predicts and scores the cases of a data set. Channels and labels are matched with those of the run by name."""

    def __init__(
        self,
        predictor: Predictor,
        dataset: Dataset,
        *,
        own: bool,
        measure: CaseMeasurer | None = None,
        postprocessing: PostProcessing | None = None,
        known: Callable[[Case], NDArray[np.uint8] | None] = lambda case: None,
    ) -> None:
        """Match the names.

        Args:
            predictor: the network, or an ensemble.
            dataset: the data set.
            own: the data set is that of the run. Another order of the names is refused then, because the files may
                still have the old order.
            measure: computes the metrics; None for the default ones.
            postprocessing: of the masks.
            known: gives the prediction of a case without post-processing, where an earlier evaluation has made it.

        Raises:
            UserError: the data set has other names than the run.
        """
        self.predictor = predictor
        self.dataset = dataset
        self.measure = measure or CaseMeasurer(predictor.scheme)
        self._postprocessing = postprocessing or PostProcessing()
        self._known = known
        problems = []
        labels = match_classes(predictor.scheme, dataset.scheme)
        channels = channel_order(predictor.channels, dataset.channels)
        for what, order, now, then in (
            ("labels", labels, dataset.labels.values(), predictor.labels.values()),
            ("channels", channels, dataset.channels, predictor.channels),
        ):
            if order is None or (own and order != tuple(range(len(order)))):
                remedy = _NAMES_CHANGED if own else _NAMES_DIFFER
                problems.append(
                    f"{dataset.root}: has the {what} {list(now)}, and the run was trained on {list(then)}: {remedy}"
                )
        if problems:
            raise UserError(problems)
        assert labels is not None and channels is not None
        self._channels = channels  # positions of the network's channels among those of the data set
        self._indices = np.full(256, IGNORE, np.uint8)  # from a class of the data set to that of the run
        self._indices[: len(labels)] = labels
        for what, order, names in (
            ("labels", labels, predictor.labels.values()),
            ("channels", channels, predictor.channels),
        ):
            if order != tuple(range(len(order))):
                log.info(
                    "%s: the %s are matched by name with those of the run: %s", dataset.root, what, ", ".join(names)
                )

    def label(self, case: Case) -> NDArray[np.uint8]:
        """Read the label of a case, on the grid of its image, as class indices of the run; `IGNORE` without annotation.

        Raises:
            CaseError: the label cannot be used.
        """
        assert case.label is not None
        readers = self.dataset.readers
        label = read_label(case.label, read_grid(case.images, readers), self.dataset.scheme, readers)
        indices: NDArray[np.uint8] = self._indices[label]
        return indices

    def prediction(self, case: Case) -> NDArray[np.uint8] | NDArray[np.bool_]:
        """Predict a case; see `Predictor.predict_outputs`. The post-processing is applied.

        Raises:
            CaseError: the image cannot be used.
        """
        found = self._known(case)
        outputs = self.predictor.predict_outputs(case.images, self._channels) if found is None else found
        if not self._postprocessing:
            return outputs
        return self._postprocessing.apply(outputs, self.predictor.scheme, self._spacing_mm(case))

    def _spacing_mm(self, case: Case) -> tuple[float, ...]:
        affine = read_grid(case.images, self.dataset.readers).affine
        return tuple(float(size) for size in voxel_sizes(affine))

    def drawn_label(self, case: Case) -> NDArray[Any]:
        """Make the label of a case for a picture: the number of the output at each voxel, from 1.

        Regions are drawn over each other in their order. Ignored voxels are 0.

        Raises:
            CaseError: the image or the label cannot be used.
        """
        label, scheme = self.label(case), self.predictor.scheme
        if not scheme.sigmoid:
            return np.where(label == IGNORE, 0, label)
        return topmost(torch.stack(list(masks_of(torch.from_numpy(label), scheme))).numpy())

    def drawn_prediction(self, case: Case) -> NDArray[Any]:
        """Predict a case, and draw it as `drawn_label` draws the label.

        Raises:
            CaseError: the image cannot be used.
        """
        prediction = self.prediction(case)
        return topmost(prediction.astype(np.bool_)) if self.predictor.scheme.sigmoid else prediction

    def annotated(self, case: Case) -> NDArray[np.bool_]:
        """Tell for each output of the run whether a case annotates it, see `annotated_outputs`."""
        return annotated_outputs(case, self.predictor.scheme)

    def __call__(self, case: Case) -> list[Score]:
        """Score a case: one score for each foreground class, or region, of the run.

        Raises:
            CaseError: the image or the label cannot be used.
        """
        return self.measure(self.predicted(case))

    def predicted(self, case: Case) -> PredictedCase:
        """Read the label of a case, and predict its image.

        Raises:
            CaseError: the image or the label cannot be used.
        """
        label = self.label(case)  # read first: a wrong label costs no prediction
        prediction = self.prediction(case)
        spacing_mm = self._spacing_mm(case)
        return PredictedCase(case.name, str(case.label), prediction, label, self.annotated(case), spacing_mm)


def annotated_outputs(case: Case, scheme: LabelScheme) -> NDArray[np.bool_]:
    """Tell for each output whether a case annotates it, (R,): by its name, or by all of its classes.

    Args:
        case: the case.
        scheme: of the run.
    """
    if case.annotated is None:
        return scheme.annotated_outputs(None)
    names = {name.casefold() for name in case.annotated}
    known = np.array([name.casefold() in names for name in scheme.names])
    by_name = np.array([name.casefold() in names for name in scheme.output_names])
    answer: NDArray[np.bool_] = by_name | ~(scheme.membership & ~known).any(axis=1)
    return answer
