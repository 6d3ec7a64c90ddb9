"""The choice of a run's task."""

from __future__ import annotations

from fusionseg.config import RunConfig
from fusionseg.config.parts.task import PRETRAINING
from fusionseg.training.tasks.pretraining import Pretraining
from fusionseg.training.tasks.segmentation import Segmentation
from fusionseg.training.tasks.task import Task


def build_task(config: RunConfig) -> Task:
    """Build the task of a configuration."""
    return Pretraining(config) if config.task_info is PRETRAINING else Segmentation(config)
