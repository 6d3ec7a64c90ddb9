"""The `model` section: one class per family of networks, told apart by `name`.

What a network reads of its data (channels in, classes out) is not configured: the data set says it.
"""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from fusionseg.config.networks.base import NetworkSection
from fusionseg.config.networks.from_monai import (
    MedNeXtConfig,
    NNUNetConfig,
    SegResNetConfig,
    SegResNetDSConfig,
    UNETRConfig,
)
from fusionseg.config.networks.swin import FUSION_PRESETS, FusionConfig, SwinConfig
from fusionseg.config.networks.unets import MonaiUNetConfig, UNetConfig

ModelConfig = Annotated[
    SwinConfig
    | UNetConfig
    | MonaiUNetConfig
    | SegResNetConfig
    | SegResNetDSConfig
    | UNETRConfig
    | NNUNetConfig
    | MedNeXtConfig,
    Field(discriminator="name"),
]


def network_sections() -> dict[str, type[NetworkSection]]:
    """The section of every network by its name, in the order of the schema: family by family."""
    sections: tuple[type[NetworkSection], ...] = get_args(get_args(ModelConfig)[0])
    return {name: section for section in sections for name in get_args(section.model_fields["name"].annotation)}


__all__ = [
    "FUSION_PRESETS",
    "FusionConfig",
    "MedNeXtConfig",
    "ModelConfig",
    "MonaiUNetConfig",
    "NNUNetConfig",
    "NetworkSection",
    "SegResNetConfig",
    "SegResNetDSConfig",
    "SwinConfig",
    "UNETRConfig",
    "UNetConfig",
    "network_sections",
]
