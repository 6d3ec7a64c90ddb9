"""Validation of a segmentation: whole volumes by sliding window, divided over the ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusionseg.config import RunConfig
from fusionseg.data.loading.device_cache import DeviceCache
from fusionseg.data.preprocessing.lost_foreground import missed_voxels
from fusionseg.distributed.load_balancing import assign_to_ranks
from fusionseg.distributed.world import World
from fusionseg.metrics.configured import build_metrics
from fusionseg.metrics.segmentation import confusion_matrix, dice_per_class, nanmean, nanmean_per_class
from fusionseg.observability.progress import with_progress
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
    """Dice of the foreground classes by case; nan where a class is neither in the label nor predicted."""
    picture: Picture | None
    metrics: dict[str, list[float]]
    """Name of each configured metric but Dice -> the mean over the cases, for each foreground class."""

    @property
    def per_class(self) -> list[float]:
        """The mean over the cases, for each foreground class."""
        return nanmean_per_class(self.cases)

    @property
    def dice(self) -> float:
        """The mean of `per_class`."""
        return nanmean(self.per_class)


class Validator:
    """Scores a network on validation cases of the cache."""

    def __init__(
        self,
        cache: DeviceCache,
        case_indices: list[int],
        config: RunConfig,
        num_classes: int,
        precision: Precision,
        world: World,
    ) -> None:
        self.cache = cache
        self.case_indices = case_indices
        self.patch = config.data.patch
        self.settings = config.validation
        self.num_classes = num_classes
        self.precision = precision
        self.world = world
        windows = {
            index: count_windows(cache.records[index].shape, self.patch, self.settings.overlap)
            for index in case_indices
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
            label = label.to(prediction.device)
            missed = missed_voxels(record, self.num_classes)
            name_of_case = self.cache.names[index]
            own[name_of_case] = dice_per_class(confusion_matrix(prediction, label, self.num_classes), missed)
            own_metrics[name_of_case] = {
                name: metric(prediction, label.long(), self.num_classes, record.spacing)
                for name, metric in self.metrics.items()
            }
            if index == self.case_indices[0]:
                picture = _slice(image, prediction, label)
        gathered = self.world.all_gather_object((own, own_metrics))
        cases = {name: dice for part, _ in gathered for name, dice in part.items()}
        measured = {name: values for _, part in gathered for name, values in part.items()}
        metrics = {
            metric: nanmean_per_class({name: values[metric] for name, values in measured.items()})
            for metric in self.metrics
        }
        return SegmentationScores(cases, picture, metrics)

    def _predict(self, model: nn.Module, image: Tensor, background: tuple[float, ...]) -> Tensor:
        logits = predict_logits(
            model,
            image,
            background,
            self.patch,
            self.settings,
            self.precision,
            device=self.world.device,
            stitch_device=self._stitch_device(image),
        )
        return logits.argmax(dim=0)

    def _stitch_device(self, image: Tensor) -> torch.device:
        """Choose the device for the logits of a volume: the GPU, if 3 copies take under half of its free memory."""
        device = self.world.device
        if device.type != "cuda":
            return device
        needed = 3 * 4 * self.num_classes * image[0].numel()
        # Memory that torch's allocator holds and does not use is free too. After training steps most free memory is of
        # this kind.
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return device if needed < (torch.cuda.mem_get_info(device)[0] + held) / 2 else torch.device("cpu")


def _slice(image: Tensor, prediction: Tensor, label: Tensor) -> Picture:
    """Take the axial slice with most foreground."""
    depth = int((label > 0).sum(dim=(0, 1)).argmax())
    return Picture(
        image[0, :, :, depth].float().cpu(),
        prediction[:, :, depth].cpu(),
        label[:, :, depth].to(torch.int64).cpu(),
    )
