"""The choice of a run's task."""

from __future__ import annotations

from fusionseg.config import RunConfig
from fusionseg.config.parts.task import default_task
from fusionseg.config.registry import tasks
from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.training.tasks.task import Task


def build_task(config: RunConfig, scheme: LabelScheme | None = None) -> Task:
    """Build the task of a configuration: the one that `task` names, else a pre-training or a segmentation.

    Args:
        config: the configuration of the run.
        scheme: the classes and the outputs of the data set; None where the loss is not needed.
    """
    if config.task is not None:
        part, args = config.task.part, config.task.args
    else:
        part, args = tasks.find(default_task(config.pretrain)), {}
    task: Task = part(config, **args)
    if isinstance(task, Task):  # `try_task` refuses anything else
        task.scheme = scheme
    return task
