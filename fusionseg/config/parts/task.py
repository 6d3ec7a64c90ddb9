"""Task descriptions: the facts about a task that other rooms need, known without the code of the task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class TaskInfo:
    """The description of a task. The task itself is a class of `fusionseg.training.tasks`, or a user's."""

    name: str
    """The name in messages and tables, such as "segmentation"."""
    score: str
    """The name of the score that best.pt is chosen by, such as "dice"; higher is better."""
    needs_labels: bool = False
    """Whether every training and validation case must have a label mask. Without this, images without labels are
    trained on too, `data.also` may name further data sets, and labels may change between two starts of a run."""
    evaluation: Literal["masks", "reconstruction", "validation"] = "validation"
    """The work of `fusionseg evaluate`. "masks": the network gives logits (B, K, X, Y, Z), and the predicted masks are
    compared with the label files; such a run can predict and be exported too. "reconstruction": hidden voxels of the
    validation volumes are filled in. "validation": the validation of the task is repeated."""


SEGMENTATION = TaskInfo("segmentation", score="dice", needs_labels=True, evaluation="masks")
PRETRAINING = TaskInfo("pre-training", score="ssim", evaluation="reconstruction")


def task_info(*, pretrain: Any) -> TaskInfo:
    """Choose the task of a configuration.

    Args:
        pretrain: the `pretrain` section, plain or validated; None where there is none.
    """
    return SEGMENTATION if pretrain is None else PRETRAINING
