"""The `model` section: one class per family of networks, told apart by `name`.

What a network reads of its data (channels in, classes out) is not configured: the data set says it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fusionseg.config.networks.base import NetworkSection
from fusionseg.config.networks.from_monai import SegResNetConfig
from fusionseg.config.networks.swin import FUSION_PRESETS, FusionConfig, SwinConfig
from fusionseg.config.networks.unets import UNetConfig

ModelConfig = Annotated[SwinConfig | UNetConfig | SegResNetConfig, Field(discriminator="name")]

__all__ = [
    "FUSION_PRESETS",
    "FusionConfig",
    "ModelConfig",
    "NetworkSection",
    "SegResNetConfig",
    "SwinConfig",
    "UNetConfig",
]
