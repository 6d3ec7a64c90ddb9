"""Validation of a segmentation: whole volumes by sliding window, divided over the ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusionseg.config import RunConfig
from fusionseg.data.labels.scheme import IGNORE, LabelScheme
from fusionseg.data.preprocessing.lost_foreground import missed_voxels
from fusionseg.distributed.load_balancing import assign_to_ranks
from fusionseg.distributed.world import World
from fusionseg.metrics.configured import build_metrics
from fusionseg.metrics.outputs import OutputComparison, masks_of
from fusionseg.metrics.segmentation import nanmean, nanmean_per_class
from fusionseg.observability.pictures import topmost
from fusionseg.observability.progress import with_progress
from fusionseg.training.data import TrainingData
from fusionseg.training.precision import Precision
from fusionseg.training.tasks.sliding_window import count_windows, predict_logits


@dataclass(frozen=True)
class Picture:
    """A slice of the first validation case: image (X, Y), and masks (X, Y) of prediction and label."""

    image: Tensor
    prediction: Tensor
    label: Tensor


@dataclass(frozen=True)
class SegmentationScores:
    """The scores, the same on every rank, and the picture, which rank 0 has."""

    cases: dict[str, list[float]]
    """Dice of each output by case; nan where it is neither in the label nor predicted, or not annotated."""
    picture: Picture | None
    metrics: dict[str, list[float]]
    """Name of each configured metric but Dice -> the mean over the cases, for each output."""

    @property
    def per_class(self) -> list[float]:
        """The mean over the cases, for each output."""
        return nanmean_per_class(self.cases)

    @property
    def dice(self) -> float:
        """The mean of `per_class`."""
        return nanmean(self.per_class)


class Validator:
    """Scores a network on validation cases of the cache."""

    def __init__(
        self,
        data: TrainingData,
        config: RunConfig,
        precision: Precision,
        world: World,
    ) -> None:
        self.data = data
        self.cache = data.cache
        self.case_indices = data.validation_cases
        self.patch = config.data.patch
        self.settings = config.validation
        self.fills_batches = config.train.compile is not False
        self.scheme = data.scheme
        self.precision = precision
        self.world = world
        windows = {
            index: count_windows(data.cache.records[index].shape, self.patch, self.settings.overlap)
            for index in data.validation_cases
        }
        self._own = assign_to_ranks(windows, world.size)[world.rank]
        self.metrics = build_metrics([metric for metric in config.metrics if metric.name != "dice"])

    def __call__(self, model: nn.Module) -> SegmentationScores:
        """Score a network, which is in evaluation mode and not wrapped by DDP. All ranks call it."""
        own: dict[str, list[float]] = {}
        own_metrics: dict[str, dict[str, list[float]]] = {}
        picture: Picture | None = None
        for index in with_progress("validating", self._own, shown=self.world.is_rank_zero):
            image, label = self.cache.volume(index)
            record = self.cache.records[index]
            prediction = self._predict(model, image, record.background)
            annotated = self.data.annotated_by(index)
            compared = OutputComparison(prediction, label.to(prediction.device), self.scheme, annotated)
            name_of_case = self.cache.names[index]
            own[name_of_case] = compared.dice(missed_voxels(record, self.scheme.membership))
            own_metrics[name_of_case] = {
                name: compared.measure(metric, record.spacing) for name, metric in self.metrics.items()
            }
            if index == self.case_indices[0]:
                picture = _slice(image, prediction, label, self.scheme)
        gathered = self.world.all_gather_object((own, own_metrics))
        cases = {name: dice for part, _ in gathered for name, dice in part.items()}
        measured = {name: values for _, part in gathered for name, values in part.items()}
        metrics = {
            metric: nanmean_per_class({name: values[metric] for name, values in measured.items()})
            for metric in self.metrics
        }
        return SegmentationScores(cases, picture, metrics)

    def _predict(self, model: nn.Module, image: Tensor, background: tuple[float, ...]) -> Tensor:
        """Predict class indices (X, Y, Z), or with sigmoid outputs the mask of each, (R, X, Y, Z)."""
        logits = predict_logits(
            model,
            image,
            background,
            self.patch,
            self.settings,
            self.precision,
            device=self.world.device,
            stitch_device=self._stitch_device(image),
            fills_batches=self.fills_batches,
        )
        return logits > 0 if self.scheme.sigmoid else logits.argmax(dim=0)

    def _stitch_device(self, image: Tensor) -> torch.device:
        """Choose the device for the logits of a volume: the GPU, if 3 copies take under half of its free memory."""
        device = self.world.device
        if device.type != "cuda":
            return device
        needed = 3 * 4 * self.scheme.num_outputs * image[0].numel()
        # Memory that torch's allocator holds and does not use is free too. After training steps most free memory is of
        # this kind.
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return device if needed < (torch.cuda.mem_get_info(device)[0] + held) / 2 else torch.device("cpu")


def _slice(image: Tensor, prediction: Tensor, label: Tensor, scheme: LabelScheme) -> Picture:
    """Take the axial slice with most foreground. Ignored voxels are drawn as background."""
    depth = int(((label > 0) & (label != IGNORE)).sum(dim=(0, 1)).argmax())
    shown, truth = prediction[..., depth].cpu(), label[..., depth].cpu()
    if scheme.sigmoid:
        shown, truth = (_topmost(masks) for masks in (shown, torch.stack(list(masks_of(truth, scheme)))))
    return Picture(image[0, ..., depth].float().cpu(), shown, truth.to(torch.int64) * (truth != IGNORE))


def _topmost(masks: Tensor) -> Tensor:
    return torch.from_numpy(topmost(masks.numpy()))
