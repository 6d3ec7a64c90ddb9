"""The scores of one case: its mask is predicted and compared with its label."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isnan
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fusionseg.config.parts.metric import MetricConfig
from fusionseg.data.formats.case_reader import read_grid, read_label
from fusionseg.data.formats.channel_names import channel_order
from fusionseg.data.formats.dataset import Case, Dataset
from fusionseg.data.formats.geometry import voxel_sizes
from fusionseg.data.labels.matching import match_classes
from fusionseg.data.labels.scheme import IGNORE
from fusionseg.inference.predictor import Predictor
from fusionseg.metrics.configured import build_metrics
from fusionseg.metrics.outputs import OutputComparison, masks_of
from fusionseg.metrics.segmentation import nanmean
from fusionseg.observability.pictures import topmost
from fusionseg.utils.errors import UserError

log = logging.getLogger("fusionseg")

# Remedies in messages about labels or channels.
_NAMES_DIFFER = "if they mean the same, use the same names in dataset.json or data.labels"
_NAMES_CHANGED = (
    "the names have changed since; restore them, or name the data set by --dataset, which matches them by name"
)


@dataclass(frozen=True)
class Score:
    """The score of one class, or region, in one case. Ignored voxels have no part in it."""

    case: str
    label: str
    """Name of the class or region."""
    dice: float
    """nan if the class is neither in the mask nor in the label, or if it is not annotated."""
    hd95_mm: float
    """nan if the class is missing in the mask or in the label, or if it is not annotated."""
    voxels_true: int | None
    """Voxels of the class in the label; None if the case does not annotate it."""
    voxels_predicted: int
    """Voxels of the class in the mask."""
    trained_on: str = "no"
    """Whether a network was trained on the image: yes, no or unknown."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The metrics of the configuration by name; nan where a class has no value."""
    voxels_ignored: int = 0
    """Voxels of the case that are marked as not annotated."""

    @property
    def is_annotated(self) -> bool:
        """False if the case does not annotate the class."""
        return self.voxels_true is not None

    def to_row(self) -> dict[str, Any]:
        """The row of the table of cases: the fields, with each metric of the configuration as a field of its own."""
        row = asdict(self)
        metrics, ignored = row.pop("metrics"), row.pop("voxels_ignored")
        return {**row, **metrics, "annotated": "yes" if self.is_annotated else "no", "voxels_ignored": ignored}


class Scorer:
    """Predicts and scores the cases of a data set. Channels and labels are matched with those of the run by name."""

    def __init__(
        self, predictor: Predictor, dataset: Dataset, *, own: bool, metrics: Sequence[MetricConfig] = ()
    ) -> None:
        """Match the names.

        Args:
            predictor: the network, or an ensemble.
            dataset: the data set.
            own: the data set is that of the run. Another order of the names is refused then, because the files may
                still have the old order.
            metrics: metrics beside Dice and HD95.

        Raises:
            UserError: the data set has other names than the run.
        """
        self.predictor = predictor
        self.dataset = dataset
        self.metrics = build_metrics(metrics)
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
        """Predict a case; see `Predictor.predict_outputs`.

        Raises:
            CaseError: the image cannot be used.
        """
        return self.predictor.predict_outputs(case.images, self._channels)

    def drawn(self, case: Case) -> tuple[NDArray[Any], NDArray[Any]]:
        """Make the label and the prediction of a case for a picture: the number of the output at each voxel, from 1.

        Regions are drawn over each other in their order. Ignored voxels are 0.

        Raises:
            CaseError: the image or the label cannot be used.
        """
        label, prediction = self.label(case), self.prediction(case)
        if not self.predictor.scheme.sigmoid:
            return np.where(label == IGNORE, 0, label), prediction
        masks = torch.stack(list(masks_of(torch.from_numpy(label), self.predictor.scheme)))
        return topmost(masks.numpy()), topmost(prediction.astype(np.bool_))

    def annotated(self, case: Case) -> NDArray[np.bool_]:
        """Tell for each output of the run whether a case annotates it, (R,): by its name, or by all of its classes."""
        scheme = self.predictor.scheme
        if case.annotated is None:
            return scheme.annotated_outputs(None)
        names = {name.casefold() for name in case.annotated}
        known = np.array([name.casefold() in names for name in scheme.names])
        by_name = np.array([name.casefold() in names for name in scheme.output_names])
        answer: NDArray[np.bool_] = by_name | ~(scheme.membership & ~known).any(axis=1)
        return answer

    def __call__(self, case: Case) -> list[Score]:
        """Score a case: one score for each foreground class, or region, of the run.

        Raises:
            CaseError: the image or the label cannot be used.
        """
        label = torch.from_numpy(self.label(case))  # read first: a wrong label costs no prediction
        prediction = torch.from_numpy(self.prediction(case))
        scheme, annotated = self.predictor.scheme, self.annotated(case)
        compared = OutputComparison(prediction, label, scheme, annotated)
        spacing_mm = voxel_sizes(read_grid(case.images, self.dataset.readers).affine)
        dice, distance, counts = compared.dice(), compared.hd95_mm(spacing_mm), compared.counts
        further = {name: compared.measure(metric, spacing_mm) for name, metric in self.metrics.items()}
        return [
            Score(
                case.name,
                name,
                dice[k],
                distance[k],
                counts.true[k] if annotated[k] else None,
                counts.predicted[k],
                metrics={title: values[k] for title, values in further.items()},
                voxels_ignored=compared.ignored,
            )
            for k, name in enumerate(scheme.output_names)
        ]


def ranked_cases(scores: Sequence[Score]) -> list[tuple[str, float]]:
    """Sort the cases by their mean Dice over the labels, the worst first; a case without a Dice is left out."""
    means = {name: nanmean([s.dice for s in scores if s.case == name]) for name in sorted({s.case for s in scores})}
    known = ((name, dice) for name, dice in means.items() if not isnan(dice))
    return sorted(known, key=lambda pair: pair[1])
