"""The scores of one case: its mask is predicted and compared with its label."""

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

# Remedies in messages about labels or channels.
_NAMES_DIFFER = "if they mean the same, use the same names in dataset.json or data.labels"
_NAMES_CHANGED = (
    "the names have changed since; restore them, or name the data set by --dataset, which matches them by name"
)


@dataclass(frozen=True)
class Score:
    """The score of one class in one case."""

    case: str
    label: str
    dice: float
    """nan if the class is neither in the mask nor in the label."""
    hd95_mm: float
    """nan if the class is missing in the mask or in the label."""
    voxels_true: int
    """Voxels of the class in the label."""
    voxels_predicted: int
    """Voxels of the class in the mask."""
    trained_on: str = "no"
    """Whether a network was trained on the image: yes, no or unknown."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The metrics of the configuration by name; nan where a class has no value."""

    def to_row(self) -> dict[str, Any]:
        """The row of the table of cases: the fields, with each metric of the configuration as a field of its own."""
        row = asdict(self)
        metrics = row.pop("metrics")
        return {**row, **metrics}


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
        self._channels = channels  # positions of the network's channels among those of the data set
        self._values = np.argsort(labels).astype(np.uint8)  # from a value of the data set to that of the run
        for what, order, names in (
            ("labels", labels, predictor.labels.values()),
            ("channels", channels, predictor.channels),
        ):
            if order != tuple(range(len(order))):
                log.info(
                    "%s: the %s are matched by name with those of the run: %s", dataset.root, what, ", ".join(names)
                )

    def label(self, case: Case) -> NDArray[np.uint8]:
        """Read the label of a case, on the grid of its image, with the label values of the run.

        Raises:
            CaseError: the label cannot be used.
        """
        assert case.label is not None
        readers = self.dataset.readers
        label = read_label(case.label, read_grid(case.images, readers), self.dataset.num_classes, readers)
        values: NDArray[np.uint8] = self._values[label]
        return values

    def mask(self, case: Case) -> NDArray[np.uint8]:
        """Predict the mask of a case.

        Raises:
            CaseError: the image cannot be used.
        """
        return self.predictor(case.images, self._channels)

    def __call__(self, case: Case) -> list[Score]:
        """Score a case: one score for each foreground class of the run.

        Raises:
            CaseError: the image or the label cannot be used.
        """
        label = torch.from_numpy(self.label(case))  # read first: a wrong label costs no prediction
        mask = torch.from_numpy(self.mask(case))
        classes = self.predictor.labels
        counts = confusion_matrix(mask, label, len(classes))
        dice = dice_per_class(counts)
        spacing_mm = voxel_sizes(read_grid(case.images, self.dataset.readers).affine)
        distance = hd95_per_class(mask, label, len(classes), spacing_mm)
        further = {name: metric(mask, label, len(classes), spacing_mm) for name, metric in self.metrics.items()}
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
