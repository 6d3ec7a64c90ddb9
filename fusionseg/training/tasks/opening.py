"""The task of a configuration."""

from __future__ import annotations

from fusionseg.config import RunConfig
from fusionseg.distributed.world import World
from fusionseg.training.data import TrainingData
from fusionseg.training.precision import Precision
from fusionseg.training.tasks.pretraining import Pretraining
from fusionseg.training.tasks.segmentation import Segmentation
from fusionseg.training.tasks.task import Task


def open_task(config: RunConfig, data: TrainingData, precision: Precision, world: World) -> Task:
    """The task of a configuration."""
    if config.pretrain is not None:
        return Pretraining(config, data, precision, world)
    return Segmentation(config, data, precision, world)
