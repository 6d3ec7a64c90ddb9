"""Task descriptions: the facts about a task that other rooms need, known without the code of the task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from fusionseg.config.outside import PartError, import_part
from fusionseg.config.outside_part import OutsidePart, name_to_section


@dataclass(frozen=True)
class TaskInfo:
    """The description of a task. The task itself is a class in `fusionseg.training.tasks`, or one of the user's own."""

    name: str
    """The name in messages and tables, such as "segmentation"."""
    score: str
    """The name of the score that chooses best.pt, such as "dice"; higher is better."""
    needs_labels: bool = False
    """Whether every training and validation case must have a label mask. Without this, images without labels are
    trained on too, `data.also` may name further data sets, and labels may change between two starts of a run."""
    evaluation: Literal["masks", "reconstruction", "validation"] = "validation"
    """The work of `fusionseg evaluate`. "masks": the network gives logits (B, K, X, Y, Z), and the predicted masks are
    compared with the label files; such a run can predict and be exported too. "reconstruction": hidden voxels of the
    validation volumes are filled in. "validation": no evaluation beside the validations."""


SEGMENTATION = TaskInfo("segmentation", score="dice", needs_labels=True, evaluation="masks")
PRETRAINING = TaskInfo("pre-training", score="ssim", evaluation="reconstruction")


class TaskConfig(OutsidePart):
    """A task from outside: a subclass of fusionseg.training.tasks.task.Task. Its constructor takes the configuration of
    the run and `args`."""

    def positional_arguments(self) -> int:
        """1: the configuration of the run."""
        return 1

    @model_validator(mode="after")
    def _is_a_task(self) -> TaskConfig:
        if not isinstance(getattr(self.part, "info", None), TaskInfo):
            raise ValueError(
                f"name: {self.name} has no description `info` (expected a subclass of"
                " fusionseg.training.tasks.task.Task with info = TaskInfo(...)); add it"
            )
        return self

    @property
    def info(self) -> TaskInfo:
        """The description of the task."""
        found: TaskInfo = self.part.info
        return found


TaskPart = Annotated[TaskConfig, BeforeValidator(name_to_section)]
"""The section of a task, or its dotted path alone."""


def task_info(*, pretrain: Any, task: Any = None) -> TaskInfo:
    """Choose the task of a configuration.

    Args:
        pretrain: the `pretrain` section, plain or validated; None where there is none.
        task: the `task` section, plain or validated; None where there is none.

    Raises:
        PartError: the class of a task from outside is not found.
    """
    if isinstance(task, TaskConfig):
        return task.info
    if isinstance(task, dict):
        info = getattr(import_part(str(task.get("name")), task.get("found_in")), "info", None)
        if not isinstance(info, TaskInfo):
            raise PartError(f"task: {task.get('name')} has no description `info`; add it")
        return info
    return SEGMENTATION if pretrain is None else PRETRAINING
