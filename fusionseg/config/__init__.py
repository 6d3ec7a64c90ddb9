"""The configuration of a run: schema, loading, overrides.

`load_config("configs/demo.yaml", ["train.steps=10"])` is the way in.

May import: `utils`.
"""

from fusionseg.config.data_sections import AugmentConfig, CacheConfig, DataConfig
from fusionseg.config.json_schema import json_schema
from fusionseg.config.loading import differences, dump_config, load_config, validate
from fusionseg.config.networks import (
    FUSION_PRESETS,
    FusionConfig,
    ModelConfig,
    MonaiUNetConfig,
    SegResNetConfig,
    SwinConfig,
    UNetConfig,
)
from fusionseg.config.observation import ProfileConfig
from fusionseg.config.schema import (
    FinetuneConfig,
    LossConfig,
    OptimConfig,
    PlateauConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
    ValidateConfig,
)

__all__ = [
    "FUSION_PRESETS",
    "AugmentConfig",
    "CacheConfig",
    "DataConfig",
    "FinetuneConfig",
    "FusionConfig",
    "LossConfig",
    "ModelConfig",
    "MonaiUNetConfig",
    "OptimConfig",
    "PlateauConfig",
    "ProfileConfig",
    "RunConfig",
    "ScheduleConfig",
    "SegResNetConfig",
    "SwinConfig",
    "TrainConfig",
    "UNetConfig",
    "ValidateConfig",
    "differences",
    "dump_config",
    "json_schema",
    "load_config",
    "validate",
]
