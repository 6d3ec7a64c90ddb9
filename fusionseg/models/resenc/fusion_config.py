"""Fused skips of the residual-encoder U-Net: variants that a name of a network sets."""

from __future__ import annotations

from typing import Any

from fusionseg.models.fusion.settings import VARIANTS

FUSION_PRESETS = {f"resenc_fusion_{variant}": VARIANTS[variant] for variant in ("2_v2", "od")}


def preset(name: str, num_stages: int) -> dict[str, Any]:
    """Return the settings of a named variant for a network of `num_stages` levels.

    A variant that fuses the bottleneck of Swin UNETR fuses that of the network.
    """
    settings = dict(FUSION_PRESETS[name])
    if "last_stage" in settings:
        settings["last_stage"] = num_stages
    return settings
