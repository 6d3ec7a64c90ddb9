"""The `task` section, and task descriptions: what other rooms need to know about a task, without its code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from fusionseg.config.outside import PartError
from fusionseg.config.outside_part import name_to_section
from fusionseg.config.parts.named_part import NamedPart
from fusionseg.config.registry import tasks


@dataclass(frozen=True)
class TaskInfo:
    """The description of a task: the attribute `info` of its class (`fusionseg.training.tasks.named`, or a user's)."""

    name: str
    """The name in messages and tables, such as "segmentation"."""
    score: str
    """The name of the score that chooses best.pt, such as "dice"; higher is better."""
    needs_labels: bool = False
    """Whether every training and validation case must have a label mask. Without this, images without labels are
    trained on too, `data.also` may name further data sets, and labels may change between two starts of a run."""
    needs_target: bool = False
    """Whether every case must have a value in the column that `data.target` names, such as its class. The names of the
    classes are those of the data set (`LabelScheme.names`), and test cases are never trained on."""
    gives_values: bool = False
    """Whether `fusionseg predict` writes a table with the task's `predicted_values` of each image."""
    evaluation: Literal["masks", "reconstruction", "validation"] = "validation"
    """The work of `fusionseg evaluate`. "masks": the network gives logits (B, K, X, Y, Z), and the predicted masks are
    compared with the label files; such a run can predict and be exported too. "reconstruction": hidden voxels of the
    validation volumes are filled in. "validation": the task's validation is repeated with the weights of a
    checkpoint."""


SEGMENTATION, PRETRAINING = "segmentation", "pretraining"
"""Names of the tasks of configurations that do not name one."""


class TaskConfig(NamedPart):
    """A task: a built-in one by its name, or one from outside by its dotted path. The class of a task is a subclass of
    fusionseg.training.tasks.task.Task. Its constructor takes the configuration of the run and `args`."""

    registry = tasks

    name: str
    """segmentation, pretraining, or the dotted path of a class: package.module:Task, or folder/file.py:Task."""

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
        if missing := sorted(getattr(self.part, "__abstractmethods__", ())):
            raise ValueError(f"name: {self.name} lacks methods of a task ({', '.join(missing)}); add them")
        return self

    @property
    def info(self) -> TaskInfo:
        """The description of the task."""
        found: TaskInfo = self.part.info
        return found


TaskPart = Annotated[TaskConfig, BeforeValidator(name_to_section)]
"""The section of a task, or its name or dotted path alone."""


def default_task(pretrain: Any) -> str:
    """Choose the task of a configuration that names none.

    Args:
        pretrain: the `pretrain` section, plain or validated; None where there is none.
    """
    return SEGMENTATION if pretrain is None else PRETRAINING


def without_default_task(raw: dict[str, Any]) -> dict[str, Any]:
    """Remove the key `task` from a plain configuration where it names the task that the configuration has without it.

    So both have the same hash, and a run resumes with either. `task: pretraining` adds the section `pretrain` with its
    defaults where there is none.

    Args:
        raw: the plain configuration.
    """
    task = name_to_section(raw.get("task"))
    if not isinstance(task, dict) or {key for key, value in task.items() if value} != {"name"}:
        return raw
    if task["name"] == PRETRAINING and raw.get("pretrain") is None:
        raw = {**raw, "pretrain": {}}
    if task["name"] != default_task(raw.get("pretrain")):
        return raw
    return {key: value for key, value in raw.items() if key != "task"}


def task_info(*, pretrain: Any = None, task: Any = None) -> TaskInfo:
    """Choose the task of a configuration.

    Args:
        pretrain: the `pretrain` section, plain or validated; None where there is none.
        task: the `task` section, plain or validated; None where there is none.

    Raises:
        PartError: the class of the task is not found, or it has no description.
    """
    if isinstance(task, TaskConfig):
        return task.info
    task = name_to_section(task) or {"name": default_task(pretrain)}
    info = getattr(tasks.find(str(task.get("name")), task.get("found_in")), "info", None)
    if not isinstance(info, TaskInfo):
        raise PartError(f"task: {task.get('name')} has no description `info`; add it")
    return info


def built_in_tasks() -> list[TaskInfo]:
    """List the descriptions of the built-in tasks, that of a segmentation first."""
    found = tasks.built_in()
    return [found[name].info for name in sorted(found, key=lambda name: name != SEGMENTATION)]
