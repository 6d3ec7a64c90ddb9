"""Comparison of a predicted and a true segmentation, output by output: foreground classes, or regions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import nan
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from torch import Tensor

from fusionseg.data.labels.scheme import IGNORE, LabelScheme
from fusionseg.metrics.configured import Metric
from fusionseg.metrics.overlap import VoxelCounts
from fusionseg.metrics.segmentation import confusion_matrix, dice_of_counts
from fusionseg.metrics.surface import SurfaceComparison

Box = tuple[slice, ...]


@dataclass(frozen=True)
class OutputCounts:
    """Voxels of each output, without the ignored ones."""

    both: tuple[int, ...]
    """Predicted and true."""
    predicted: tuple[int, ...]
    true: tuple[int, ...]

    def of_each(self) -> list[VoxelCounts]:
        """The counts of each output by itself."""
        return [VoxelCounts(*counts) for counts in zip(self.both, self.predicted, self.true, strict=True)]


class OutputComparison:
    """A predicted and a true segmentation of one case.

    Ignored voxels have no part in the counts and the Dice. For other metrics they are background in both masks. An
    output that the case does not annotate has no value (nan).
    """

    def __init__(
        self, prediction: Tensor, label: Tensor, scheme: LabelScheme, annotated: NDArray[np.bool_] | None = None
    ) -> None:
        """Args:
        prediction: class indices (X, Y, Z), or with sigmoid outputs a mask of each, bool (R, X, Y, Z).
        label: class indices (X, Y, Z), `IGNORE` without annotation; on the same device.
        scheme: the outputs.
        annotated: (R,), the outputs that the case annotates; None for all.
        """
        self.prediction = prediction
        self.label = label
        self.scheme = scheme
        self.annotated = np.ones(len(scheme.output_names), bool) if annotated is None else annotated
        ignored = label == IGNORE
        self.ignored = int(ignored.sum())
        """Number of ignored voxels."""
        self._valid = ~ignored if self.ignored else None

    @cached_property
    def counts(self) -> OutputCounts:
        """Voxel counts of each output.

        Raises:
            ValueError: a value of the prediction or the label is no index of a class.
        """
        return self._region_counts() if self.scheme.sigmoid else self._class_counts()

    def dice(self, missed: Sequence[int] | None = None) -> list[float]:
        """Compute the Dice coefficient of each output; see `dice_per_class`.

        Args:
            missed: for each output, true voxels that are not in the label; they count as not predicted.
        """
        counts = self.counts
        return self._known(dice_of_counts(counts.both, counts.predicted, counts.true, missed))

    def hd95_mm(self, spacing_mm: Sequence[float]) -> list[float]:
        """Compute the 95 % Hausdorff distance of each output, in mm; see `hd95_per_class`."""
        return [
            SurfaceComparison(predicted, true, spacing_mm).hd95_mm if known else nan
            for (predicted, true), known in zip(self.cut_masks(), self.annotated, strict=True)
        ]

    def cut_masks(self) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
        """Yield the predicted and the true mask of each output, cut as in `boxed_masks`."""
        return ((predicted, true) for _, predicted, true in self.boxed_masks())

    def boxed_masks(self) -> Iterator[tuple[Box, NDArray[np.bool_], NDArray[np.bool_]]]:
        """Yield for each output the box that holds both masks, and the predicted and the true mask, cut to it.

        The arrays are empty without a voxel in either mask. Ignored voxels are False. A volume of a hundred classes is
        looked at once, and not once for each class.
        """
        label, prediction = self.label.cpu().numpy(), self.prediction.cpu().numpy()
        if self._valid is not None:
            prediction = prediction * self._valid.cpu().numpy()
        members = self.scheme.membership_of_indices
        in_label = find_objects(label, max_label=self.scheme.num_classes - 1)
        in_prediction = [] if self.scheme.sigmoid else find_objects(prediction, max_label=self.scheme.num_classes - 1)
        for index, row in enumerate(members):
            boxes = [in_label[value - 1] for value in np.flatnonzero(row) if value]
            if self.scheme.sigmoid:
                boxes.append(_box_of(prediction[index]))
                cut = _union(boxes)
                yield cut, prediction[index][cut].astype(bool), row[label[cut]]
            else:
                boxes.append(in_prediction[index])
                cut = _union(boxes)
                yield cut, prediction[cut] == index + 1, label[cut] == index + 1

    def measure(self, metric: Metric, spacing_mm: Sequence[float]) -> list[float]:
        """Apply a metric of the configuration.

        With sigmoid outputs it is called for each one, with the binary masks of the output, as for two classes.

        Raises:
            MetricError: the result is not one number for each foreground class.
        """
        if self.scheme.sigmoid:
            return [
                metric(predicted.long(), true.long(), 2, spacing_mm)[0] if known else nan
                for (predicted, true), known in zip(self._masks(), self.annotated, strict=True)
            ]
        prediction, label = self.prediction, self.label
        if self._valid is not None:
            prediction, label = torch.where(self._valid, prediction, 0), torch.where(self._valid, label, 0)
        return self._known(metric(prediction, label.long(), self.scheme.num_classes, spacing_mm))

    def _masks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the predicted and the true mask of each output; ignored voxels are False."""
        true_masks = masks_of(self.label, self.scheme)
        predicted_masks = self.prediction if self.scheme.sigmoid else masks_of(self.prediction, self.scheme)
        for predicted, true in zip(predicted_masks, true_masks, strict=True):
            yield (predicted if self._valid is None else predicted & self._valid), true

    def _class_counts(self) -> OutputCounts:
        prediction, label = self.prediction, self.label
        if self._valid is not None:
            prediction, label = prediction[self._valid], label[self._valid]
        if not label.numel():
            return OutputCounts(*((0,) * (self.scheme.num_classes - 1),) * 3)
        counts = confusion_matrix(prediction, label, self.scheme.num_classes).cpu()
        sums = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
        return OutputCounts(*(tuple(each[1:].tolist()) for each in sums))

    def _region_counts(self) -> OutputCounts:
        flat = self.label.flatten().long()
        # Rows: all voxels, then those of each predicted mask. Columns: their true class.
        rows = [flat, *(flat[mask.flatten()] for mask in self.prediction)]
        table = torch.stack([torch.bincount(row, minlength=IGNORE + 1) for row in rows]).cpu()
        if table[0, self.scheme.num_classes : IGNORE].any():
            raise ValueError(f"label: wrong class indices (expected 0 to {self.scheme.num_classes - 1}, or {IGNORE})")
        table = table[:, : self.scheme.num_classes]
        members = torch.from_numpy(self.scheme.membership)
        sums = (table[1:] * members).sum(dim=1), table[1:].sum(dim=1), (table[0] * members).sum(dim=1)
        return OutputCounts(*(tuple(each.tolist()) for each in sums))

    def _known(self, values: Sequence[float]) -> list[float]:
        return [value if known else nan for value, known in zip(values, self.annotated, strict=True)]


def _box_of(mask: NDArray[Any]) -> Box | None:
    found = find_objects(mask.astype(np.uint8), max_label=1)
    return found[0] if found else None


def _union(boxes: Sequence[Box | None]) -> Box:
    """The box that holds all boxes; an empty one without any."""
    known = [box for box in boxes if box is not None]
    if not known:
        return (slice(0, 0),) * 3
    return tuple(slice(min(s.start for s in sides), max(s.stop for s in sides)) for sides in zip(*known, strict=True))


def masks_of(indices: Tensor, scheme: LabelScheme) -> Iterator[Tensor]:
    """Yield the mask of each output, bool (X, Y, Z).

    Args:
        indices: class indices (X, Y, Z); voxels of `IGNORE` belong to no output.
        scheme: the outputs.
    """
    table = torch.from_numpy(scheme.membership_of_indices)
    indices = indices.long()
    for row in table.to(indices.device):
        yield row[indices]
