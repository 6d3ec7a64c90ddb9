"""One case of an evaluation: its mask, its label, and what the one is worth against the other."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fusionseg.config.parts.metric import MetricConfig
from fusionseg.data.formats.case_reader import read_grid, read_label
from fusionseg.data.formats.channel_names import channel_order, label_order
from fusionseg.data.formats.dataset import Case, Dataset
from fusionseg.data.formats.geometry import voxel_sizes
from fusionseg.inference.predictor import Predictor
from fusionseg.metrics.configured import build_metrics
from fusionseg.metrics.segmentation import confusion_matrix, dice_per_class, hd95_per_class
from fusionseg.utils.errors import UserError

log = logging.getLogger("fusionseg")


@dataclass(frozen=True)
class Score:
    """One class of one case."""

    case: str
    label: str
    dice: float
    """nan where the class is in neither mask."""
    hd95_mm: float
    """nan where the class is missing in either mask."""
    voxels_true: int
    voxels_predicted: int
    trained_on: str = "no"
    """Whether the network was trained on this image: yes, no or unknown."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The metrics of the configuration by name; nan where the class has none."""

    def to_row(self) -> dict[str, Any]:
        """The fields of a table row, the metrics of the configuration among them."""
        row = asdict(self)
        metrics = row.pop("metrics")
        return {**row, **metrics}


class Scorer:
    """Predicts and scores cases of a data set, whose channels and labels are matched with the run's by name."""

    def __init__(
        self, predictor: Predictor, dataset: Dataset, *, own: bool, metrics: Sequence[MetricConfig] = ()
    ) -> None:
        """Match the names.

        Args:
            metrics: metrics beside Dice and HD95.
            own: whether it is the data set that the run was trained on, where another order of the names is a change
                of which nobody knows whether the files followed it.

        Raises:
            UserError: the names are not the same.
        """
        self.predictor = predictor
        self.dataset = dataset
        self.metrics = build_metrics(metrics)
        problems = []
        labels = label_order(predictor.labels, dataset.labels)
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
        self._channels = channels
        self._values = np.argsort(labels).astype(np.uint8)  # of the data set -> of the run
        for what, order, names in (
            ("labels", labels, predictor.labels.values()),
            ("channels", channels, predictor.channels),
        ):
            if order != tuple(range(len(order))):
                log.info("%s: the %s are taken by name, in the run's order: %s", dataset.root, what, ", ".join(names))

    def label(self, case: Case) -> NDArray[np.uint8]:
        """The label of a case in the run's values, on the grid of its image.

        Raises:
            CaseError: it cannot be used.
        """
        assert case.label is not None
        readers = self.dataset.readers
        label = read_label(case.label, read_grid(case.images, readers), self.dataset.num_classes, readers)
        values: NDArray[np.uint8] = self._values[label]
        return values

    def mask(self, case: Case) -> NDArray[np.uint8]:
        """The prediction for a case.

        Raises:
            CaseError: its image cannot be used.
        """
        return self.predictor(case.images, self._channels)

    def __call__(self, case: Case) -> list[Score]:
        """Score a case: one score for each foreground class of the run.

        Raises:
            CaseError: the image or the label cannot be used; the label is looked at before anything is predicted.
        """
        theirs = torch.from_numpy(self.label(case))
        ours = torch.from_numpy(self.mask(case))
        classes = self.predictor.labels
        counts = confusion_matrix(ours, theirs, len(classes))
        dice = dice_per_class(counts)
        spacing_mm = voxel_sizes(read_grid(case.images, self.dataset.readers).affine)
        distance = hd95_per_class(ours, theirs, len(classes), spacing_mm)
        further = {name: metric(ours, theirs, len(classes), spacing_mm) for name, metric in self.metrics.items()}
        predicted, true = counts.sum(dim=1), counts.sum(dim=0)
        names = [classes[value] for value in sorted(classes) if value]
        return [
            Score(
                case.name,
                name,
                dice[k],
                distance[k],
                int(true[k + 1]),
                int(predicted[k + 1]),
                metrics={title: values[k] for title, values in further.items()},
            )
            for k, name in enumerate(names)
        ]


_NAMES_DIFFER = "use the same names, in dataset.json or by data.labels, if the same is meant"
_NAMES_CHANGED = (
    "the names have changed since; restore them, or evaluate on the data set as another one (--dataset), which matches"
    " them by name"
)
