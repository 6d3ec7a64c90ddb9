"""Validation: whole volumes by sliding window, dealt over the ranks, gathered by case."""

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
from fusionseg.training.precision import Precision
from fusionseg.training.sliding_window import count_windows, predict_logits


@dataclass(frozen=True)
class Picture:
    """A slice of the first validation case: image (X, Y), and masks (X, Y) of prediction and truth."""

    image: Tensor
    prediction: Tensor
    label: Tensor


@dataclass(frozen=True)
class Validation:
    """The result, the same on every rank (but the picture, which rank 0 has)."""

    cases: dict[str, list[float]]
    """Dice of the foreground classes by case; nan where a case has none."""
    picture: Picture | None
    metrics: dict[str, list[float]]
    """Of each metric of the configuration, by name, the mean over the cases for each foreground class."""

    @property
    def per_class(self) -> list[float]:
        return nanmean_per_class(self.cases)

    @property
    def dice(self) -> float:
        """Mean over the foreground classes of the mean over the cases."""
        return nanmean(self.per_class)


class Validator:
    """Validates a network on some cases of a cache."""

    def __init__(
        self,
        cache: DeviceCache,
        numbers: list[int],
        config: RunConfig,
        num_classes: int,
        precision: Precision,
        world: World,
    ) -> None:
        self.cache = cache
        self.numbers = numbers
        self.config = config
        self.num_classes = num_classes
        self.precision = precision
        self.world = world
        windows = {
            number: count_windows(cache.records[number].shape, config.data.patch, config.validation.overlap)
            for number in numbers
        }
        self._own = assign_to_ranks(windows, world.size)[world.rank]
        self.metrics = build_metrics([metric for metric in config.metrics if metric.name != "dice"])

    def __call__(self, model: nn.Module) -> Validation:
        """Validate; all ranks must call it. `model` is the bare network, not its DDP wrapper."""
        training = model.training
        model.eval()
        # Batch norm's running statistics are each rank's own; one network is validated, the one that is saved.
        self.world.broadcast_(buffer for buffer in model.buffers() if buffer.is_floating_point())
        own: dict[str, list[float]] = {}
        own_metrics: dict[str, dict[str, list[float]]] = {}
        picture: Picture | None = None
        for number in self._own:
            image, label = self.cache.volume(number)
            prediction = self._predict(model, image, self.cache.records[number].background)
            label = label.to(prediction.device)
            record = self.cache.records[number]
            missed = missed_voxels(record, self.num_classes)
            own[record.name] = dice_per_class(confusion_matrix(prediction, label, self.num_classes), missed)
            own_metrics[record.name] = {
                name: metric(prediction, label.long(), self.num_classes, record.spacing)
                for name, metric in self.metrics.items()
            }
            if number == self.numbers[0]:
                picture = _slice(image, prediction, label)
        gathered = self.world.all_gather_object((own, own_metrics))
        model.train(training)
        cases = {name: dice for part, _ in gathered for name, dice in part.items()}
        measured = {name: values for _, part in gathered for name, values in part.items()}
        metrics = {
            title: nanmean_per_class({name: values[title] for name, values in measured.items()})
            for title in self.metrics
        }
        return Validation(cases, picture, metrics)

    def _predict(self, model: nn.Module, image: Tensor, background: tuple[float, ...]) -> Tensor:
        logits = predict_logits(
            model,
            image,
            background,
            self.config.data.patch,
            self.config.validation,
            self.precision,
            device=self.world.device,
            stitch_device=self._stitch_device(image),
        )
        return logits.argmax(dim=0)

    def _stitch_device(self, image: Tensor) -> torch.device:
        """Where the logits of a volume are gathered: on the GPU if three copies take under half of what is free."""
        device = self.world.device
        if device.type != "cuda":
            return device
        needed = 3 * 4 * self.num_classes * image[0].numel()
        # What torch's allocator holds and does not use is free too, and after training steps that is nearly everything.
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return device if needed < (torch.cuda.mem_get_info(device)[0] + held) / 2 else torch.device("cpu")


def _slice(image: Tensor, prediction: Tensor, label: Tensor) -> Picture:
    """The axial slice with most foreground."""
    depth = int((label > 0).sum(dim=(0, 1)).argmax())
    return Picture(
        image[0, :, :, depth].float().cpu(),
        prediction[:, :, depth].cpu(),
        label[:, :, depth].to(torch.int64).cpu(),
    )
