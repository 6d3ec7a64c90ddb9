"""Segmentation as a task: image and label in, Dice out."""

from __future__ import annotations

from torch import Tensor, nn

from fusionseg.config import RunConfig
from fusionseg.distributed.world import World
from fusionseg.metrics.segmentation import nanmean
from fusionseg.observability.pictures import overlay
from fusionseg.training.data import TrainingData
from fusionseg.training.precision import Precision
from fusionseg.training.tasks.task import Outcome
from fusionseg.training.tasks.validation import Validator


class Segmentation:
    """A network that labels every voxel."""

    measure = "dice"

    def __init__(self, config: RunConfig, data: TrainingData, precision: Precision, world: World) -> None:
        self.data = data
        self.validator = Validator(data.cache, data.validation_numbers, config, len(data.labels), precision, world)

    def batch(self, step: int, indices: range) -> tuple[tuple[Tensor, ...], Tensor]:
        """((image (B, C, X, Y, Z),), label (B, 1, X, Y, Z))."""
        image, label = self.data.batch(step, indices)
        return (image,), label

    def validate(self, model: nn.Module) -> Outcome:
        """Whole volumes by sliding window; the score is the mean Dice of the foreground classes.

        Prediction and label are compared on the prepared grid, where both are resampled and cropped: not in the
        geometry of the files, as `fusionseg evaluate` does.
        """
        result = self.validator(model)
        per_class = dict(zip(self.data.class_names, result.per_class, strict=True))
        metrics = {
            title: {"mean": nanmean(values), "per_class": dict(zip(self.data.class_names, values, strict=True))}
            for title, values in result.metrics.items()
        }
        shown = ", ".join(f"{name} {value:.4f}" for name, value in per_class.items())
        return Outcome(
            score=result.dice,
            fields={
                "dice": result.dice,
                "dice_per_class": per_class,
                "cases": len(result.cases),
                "grid": "prepared",
                **({"metrics": metrics} if metrics else {}),
            },
            summary=f"Dice {result.dice:.4f} on the prepared grid ({shown})",
            picture=None if result.picture is None else overlay(result.picture),
        )
