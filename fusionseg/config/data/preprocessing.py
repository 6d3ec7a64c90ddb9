"""Sections of the preparation of volumes: `data.intensity` and `data.crop_foreground`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fusionseg.config.section import Pair, Section


class IntensityConfig(Section):
    """Normalisation of the raw intensities, after `data.transforms`."""

    mode: Literal["window", "zscore", "none"] = "zscore"
    """`window`: clip to a fixed range (CT) and scale it to [0, 1]; `zscore`: mean 0, deviation 1 per volume
    (MRI); `none`: no normalisation, for `data.transforms` that normalise. With `clip` given and no mode, it is
    `window`."""
    clip: Pair | None = None
    """Lowest and highest raw value. `window` needs it; `zscore` clips before it computes mean and deviation."""
    percentiles: Pair | None = None
    """For `zscore`: clip to these percentiles of the volume (such as [0.5, 99.5]) before mean and deviation are
    computed."""
    nonzero: bool = False
    """For `zscore`: compute mean and deviation of the non-zero voxels, and normalise only them (skull-stripped MRI)."""

    @model_validator(mode="before")
    @classmethod
    def _clip_means_window(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and "mode" not in raw and raw.get("clip") is not None:
            return {**raw, "mode": "window"}
        return raw

    @model_validator(mode="after")
    def _complete(self) -> IntensityConfig:
        if self.mode == "window":
            if self.clip is None:
                raise ValueError(
                    "clip: is missing for mode: window; add clip: [lowest, highest], such as [-1000, 600] HU"
                )
            for key in ("percentiles", "nonzero"):
                if getattr(self, key):
                    raise ValueError(f"{key}: belongs to mode: zscore; remove it or change the mode")
        if self.mode == "none":
            for key in ("clip", "percentiles", "nonzero"):
                if getattr(self, key):
                    raise ValueError(f"{key}: has no effect with mode: none; remove it or change the mode")
        for key in ("clip", "percentiles"):
            pair = getattr(self, key)
            if pair is not None and not pair[0] < pair[1]:
                raise ValueError(f"{key}: expected [lowest, highest] with lowest below highest, got {list(pair)}")
        if self.percentiles and not (self.percentiles[0] >= 0 and self.percentiles[1] <= 100):
            raise ValueError(f"percentiles: expected values from 0 to 100, got {list(self.percentiles)}")
        return self


class CropForegroundConfig(Section):
    """Crop each volume to the box of the voxels above a raw intensity (the body without the air)."""

    threshold: float
    """Raw intensity: the box holds all voxels above it."""
    margin: Annotated[int, Field(ge=0)] = 4
    """Voxels added on every side."""
