"""Segmentation losses of logits (B, C, X, Y, Z) and labels (B, 1, X, Y, Z), at one or several resolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionseg.config.parts.sections import LossSection
from fusionseg.data.labels.scheme import IGNORE, LabelScheme

Logits = Tensor | Sequence[Tensor]
"""Logits (B, C, X, Y, Z); with deep supervision a sequence of logits, full resolution first."""


class PartialLabel(NamedTuple):
    """A label together with the outputs that the case of each sample annotates."""

    label: Tensor
    """Class indices (B, 1, X, Y, Z), int64."""
    annotated: Tensor
    """bool (B, R), for each sigmoid output."""


Target = Tensor | PartialLabel
"""Class indices (B, 1, X, Y, Z), int64, `IGNORE` without annotation; or the same with the annotated outputs."""
Loss = Callable[[Logits, Target], Tensor]
"""(logits of any floating type, target at full resolution) -> float32 scalar."""


def build_loss(config: LossSection, scheme: LabelScheme | None = None) -> Loss:
    """Build the loss that the `loss` section names. The loss is the mean over a micro-batch.

    It is computed in float32 for logits of any type, because sums over a volume exceed the range of float16. With deep
    supervision it is the mean over the resolutions with weights 1, 1/2, 1/4, ... (Isensee et al., 2021, methods,
    doi:10.1038/s41592-020-01008-z); the label is resampled to each resolution.

    Nothing depends on voxels and outputs without annotation: neither the loss nor its gradient changes with the logits
    or the labels there, bit for bit.

    Args:
        config: the section `loss`.
        scheme: the outputs and the ignore label of the data set; None for classes that exclude each other, all voxels
            annotated.
    """
    sigmoid = scheme is not None and scheme.sigmoid
    ignores = scheme is not None and scheme.ignore is not None
    single_resolution_loss = config.build(sigmoid=sigmoid)
    membership = OutputMembership(scheme) if scheme is not None and sigmoid else None

    def loss_at(logits: Tensor, label: Tensor, annotated: Tensor | None) -> Tensor:
        logits, label = logits.float(), label_at(label, logits.shape[2:])
        mask = annotated_voxels(label if ignores else None, annotated, logits.shape)
        if mask is not None:  # set to a constant first, so that what lies there has no effect, not even NaN
            logits = torch.where(mask, logits, 0)
        if membership is not None:
            target = membership(label)
            return single_resolution_loss(logits, target if mask is None else torch.where(mask, target, 0), mask)
        return single_resolution_loss(logits, label if mask is None else torch.where(mask, label, 0), mask)

    # MONAI's DeepSupervisionLoss accepts no integer labels, and the sum of its weights is not 1.
    def loss(logits: Logits, target: Target) -> Tensor:
        label, annotated = target if isinstance(target, PartialLabel) else (target, None)
        if isinstance(logits, Tensor):
            return loss_at(logits, label, annotated)
        weights = [0.5**level for level in range(len(logits))]
        total = sum(weight * loss_at(part, label, annotated) for weight, part in zip(weights, logits, strict=True))
        assert isinstance(total, Tensor)
        return total / sum(weights)

    return loss


class OutputMembership:
    """The binary target of each sigmoid output, made on the device from the label.

    Args:
        scheme: with sigmoid outputs.
    """

    def __init__(self, scheme: LabelScheme) -> None:
        self._table = torch.from_numpy(scheme.membership_of_indices).float()

    def __call__(self, label: Tensor) -> Tensor:
        """Return the membership (B, R, X, Y, Z), float32, 0 or 1, of class indices (B, 1, X, Y, Z)."""
        if self._table.device != label.device:  # once, at the first call
            self._table = self._table.to(label.device)
        return self._table[:, label.squeeze(1)].transpose(0, 1)


def annotated_voxels(label: Tensor | None, annotated: Tensor | None, shape: Sequence[int]) -> Tensor | None:
    """Return the mask of voxels with annotation, bool (B, 1 or C, X, Y, Z); None if all are annotated.

    Args:
        label: class indices (B, 1, X, Y, Z); None for labels without an ignore value.
        annotated: bool (B, C); None if every case annotates everything.
        shape: of the logits, (B, C, X, Y, Z).
    """
    valid = None if label is None else label != IGNORE
    if annotated is None:
        return valid
    channels = annotated[:, :, None, None, None]
    return channels.expand(tuple(shape)) if valid is None else channels & valid


def label_at(label: Tensor, size: Sequence[int]) -> Tensor:
    """Resample a label to another resolution; each voxel takes the class of the nearest voxel centre.

    A voxel takes `IGNORE` in the same way: it is without annotation if the nearest voxel is.

    Args:
        label: class indices (B, 1, X, Y, Z).
        size: the new X, Y, Z.
    """
    if label.shape[2:] == tuple(size):
        return label
    # interpolate accepts no int64. float32 represents class indices up to 2**24 exactly.
    return F.interpolate(label.float(), size=tuple(size), mode="nearest-exact").long()
