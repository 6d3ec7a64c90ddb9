"""The configuration of a run: schema, loading, overrides.

`load_config("configs/demo.yaml", ["train.steps=10"])` is the usual entry point.

May import: `utils`.
"""

from fusionseg.config.data.augmentation import AugmentConfig
from fusionseg.config.data.cache import CacheConfig
from fusionseg.config.data.dataset import DataConfig
from fusionseg.config.loading import differences, dump_config, load_config, validate
from fusionseg.config.observation import ProfileConfig
from fusionseg.config.parts.sections import LossSection, NetworkSection, OptimizerSection, ScheduleSection
from fusionseg.config.schema import (
    ModelConfig,
    PlateauConfig,
    RunConfig,
    TrainConfig,
    ValidateConfig,
    json_schema,
)
from fusionseg.config.training.fine_tuning import FinetuneConfig

__all__ = [
    "AugmentConfig",
    "CacheConfig",
    "DataConfig",
    "FinetuneConfig",
    "LossSection",
    "ModelConfig",
    "NetworkSection",
    "OptimizerSection",
    "PlateauConfig",
    "ProfileConfig",
    "RunConfig",
    "ScheduleSection",
    "TrainConfig",
    "ValidateConfig",
    "differences",
    "dump_config",
    "json_schema",
    "load_config",
    "validate",
]
