"""The choice of a run's task."""

from __future__ import annotations

from fusionseg.config import RunConfig
from fusionseg.config.parts.task import PRETRAINING
from fusionseg.training.tasks.pretraining import Pretraining
from fusionseg.training.tasks.segmentation import Segmentation
from fusionseg.training.tasks.task import Task


def build_task(config: RunConfig) -> Task:
    """Build the task of a configuration: the one that `task` names, a pre-training, or a segmentation.

    Args:
        config: the configuration of the run.
    """
    if config.task is not None:
        task: Task = config.task.part(config, **config.task.args)
        return task
    return Pretraining(config) if config.task_info is PRETRAINING else Segmentation(config)
