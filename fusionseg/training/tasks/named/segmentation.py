"""The task of segmentation: the network gives each voxel a class, or its regions; the score is the mean Dice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusionseg.config.parts.task import TaskInfo
from fusionseg.config.registry import tasks
from fusionseg.models import build_model
from fusionseg.training.tasks.task import Task, ValidationResult

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fusionseg.distributed.world import World
    from fusionseg.losses.segmentation import Target
    from fusionseg.training.data import TrainingData
    from fusionseg.training.precision import Precision
    from fusionseg.training.tasks.task import BatchFunction, Inputs, Loss, ValidationFunction


@tasks.register("segmentation")
class Segmentation(Task):
    """Segmentation of images with label masks."""

    info = TaskInfo("segmentation", score="dice", needs_labels=True, evaluation="masks")

    def build_network(self, in_channels: int, out_channels: int, *, checkpoint_activations: bool = False) -> nn.Module:
        """Build the network of the `model` section; its output is the logits (B, C, X, Y, Z)."""
        from fusionseg.training.tasks.fine_tuning import freeze_encoder

        model = build_model(
            self.config.model,
            in_channels=in_channels,
            out_channels=out_channels,
            patch=self.config.data.patch,
            checkpoint_activations=checkpoint_activations,
        )
        freeze_encoder(model, self.config)
        return model

    def build_loss(self) -> Loss:
        """Build the loss of the `loss` section."""
        from fusionseg.losses.segmentation import build_loss  # imports MONAI, which takes seconds

        return build_loss(self.config.loss, self.scheme)

    def example(self, in_channels: int) -> tuple[Inputs, Tensor]:
        """Input is the image (B, C, X, Y, Z), target the label (B, 1, X, Y, Z), int64; see `Task.example`."""
        import torch

        batch, patch = self.config.train.micro_batch_samples, self.config.data.patch
        return (torch.empty(batch, in_channels, *patch),), torch.zeros(batch, 1, *patch, dtype=torch.int64)

    def build_batches(self, data: TrainingData, world: World) -> BatchFunction:
        """Input is the image (B, C, X, Y, Z), target the label (B, 1, X, Y, Z), int64.

        If some cases annotate only some of the classes, the target also has the annotated outputs of each sample.
        """
        from fusionseg.data.loading.transfer import send
        from fusionseg.losses.segmentation import PartialLabel

        def batch(step: int, indices: range) -> tuple[Inputs, Target]:
            image, label = data.batch(step, indices)
            annotated = data.annotated_outputs(step, indices)
            return (image,), label if annotated is None else PartialLabel(label, send(annotated, world.device))

        return batch

    def build_validation(self, data: TrainingData, precision: Precision, world: World) -> ValidationFunction:
        """Validate whole volumes by sliding window; the score is the mean Dice of the foreground classes, or regions.

        Prediction and label are compared on the prepared grid, where both are resampled and cropped. `fusionseg
        evaluate` compares them in the geometry of the files.
        """
        import numpy as np

        from fusionseg.training.tasks.segmentation_validation import Validator
        from fusionseg.utils.means import nanmean

        validator = Validator(data, self.config, precision, world)
        total = len(data.validation_cases)
        counts = np.sum([data.annotated_by(index) for index in data.validation_cases], axis=0).tolist()

        def validate(model: nn.Module) -> ValidationResult:
            scores = validator(model)
            per_class = dict(zip(data.scheme.output_names, scores.per_class, strict=True))
            metrics = {
                name: {"mean": nanmean(values), "per_class": dict(zip(data.scheme.output_names, values, strict=True))}
                for name, values in scores.metrics.items()
            }
            annotated = dict(zip(data.scheme.output_names, counts, strict=True))
            shown = ", ".join(
                f"{name} {value:.4f}" + (f" in {annotated[name]} of {total} cases" if annotated[name] < total else "")
                for name, value in per_class.items()
            )
            picture = None
            if scores.picture is not None:
                picture = np.divide(scores.picture, 255, dtype=np.float32).transpose(2, 0, 1)
            return ValidationResult(
                score=scores.dice,
                fields={
                    "dice": scores.dice,
                    "dice_per_class": per_class,
                    "loss": scores.loss,
                    "cases": len(scores.cases),
                    **({"annotated_per_class": annotated} if min(counts) < total else {}),
                    "grid": "prepared",
                    **({"metrics": metrics} if metrics else {}),
                },
                summary=f"Dice {scores.dice:.4f} on the prepared grid ({shown})",
                picture=picture,
            )

        return validate

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Group the parameters as the `finetune` section says."""
        from fusionseg.training.tasks.fine_tuning import parameter_groups

        return parameter_groups(model, self.config)
