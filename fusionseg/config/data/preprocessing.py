"""Sections of the preparation of volumes: `data.intensity` and `data.crop_foreground`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fusionseg.config.section import Pair, SectionWithOptions

_FIXED_STATISTICS = ("mean", "deviation")


class ChannelIntensityConfig(SectionWithOptions):
    """Normalisation of the raw intensities of a channel."""

    left_out: ClassVar[tuple[str, ...]] = _FIXED_STATISTICS

    mode: Literal["window", "zscore", "rescale", "none"] = "zscore"
    """`window`: clip to a fixed range (CT) and scale it to [0, 1]; `zscore`: mean 0, deviation 1 per volume
    (MRI); `rescale`: scale the range of the volume to [0, 1]; `none`: no normalisation, for `data.transforms` that
    normalise. With `clip` given and no mode, it is `window`."""
    clip: Pair | None = None
    """Lowest and highest raw value. `window` needs it; `zscore` clips before it computes mean and deviation."""
    percentiles: Pair | None = None
    """For `zscore`: clip to these percentiles of the volume (such as [0.5, 99.5]) before mean and deviation are
    computed. For `rescale`: the percentiles that become 0 and 1; null is lowest and highest value."""
    nonzero: bool = False
    """For `zscore`: compute mean and deviation of the non-zero voxels, and normalise only them (skull-stripped MRI)."""
    mean: float | None = None
    """For `zscore`: subtract this raw value instead of the mean of the volume. With `clip` and `deviation` it is the
    normalisation of nnU-Net for CT: the same HU have the same value in every volume."""
    deviation: Annotated[float, Field(gt=0)] | None = None
    """For `zscore`: divide by this value instead of the deviation of the volume. It belongs to `mean`."""

    @model_validator(mode="before")
    @classmethod
    def _clip_means_window(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and "mode" not in raw and raw.get("clip") is not None:
            return {**raw, "mode": "window"}
        return raw

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.mode == "window":
            if self.clip is None:
                raise ValueError(
                    "clip: is missing for mode: window; add clip: [lowest, highest], such as [-1000, 600] HU"
                )
            for key in ("percentiles", "nonzero"):
                if getattr(self, key):
                    raise ValueError(f"{key}: belongs to mode: zscore; remove it or change the mode")
        for key in _FIXED_STATISTICS if self.mode != "zscore" else ():
            if getattr(self, key) is not None:
                raise ValueError(f"{key}: belongs to mode: zscore; remove it or change the mode")
        if (self.mean is None) != (self.deviation is None):
            lacking = "mean" if self.mean is None else "deviation"
            raise ValueError(f"{lacking}: is missing; mean and deviation are given together, or both are left out")
        if self.mode == "rescale":
            for key in ("clip", "nonzero"):
                if getattr(self, key):
                    raise ValueError(f"{key}: has no effect with mode: rescale; remove it or change the mode")
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


class IntensityConfig(ChannelIntensityConfig):
    """Normalisation of the raw intensities, after `data.transforms`: one for all channels, or one for each. A mapping
    from the names of the channels, such as {CT: {clip: [-1000, 600]}, PET: {mode: zscore}}, stands for `channels`."""

    left_out: ClassVar[tuple[str, ...]] = ("channels", *_FIXED_STATISTICS)

    channels: dict[str, ChannelIntensityConfig] | None = None
    """Settings of single channels, by their names in the data set. The keys beside it are those of all other channels;
    if these have their defaults, every channel must be named."""

    @model_validator(mode="before")
    @classmethod
    def _names_mean_channels(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or not raw or raw.keys() & cls.model_fields.keys():
            return raw
        return {"channels": raw} if all(isinstance(value, dict) for value in raw.values()) else raw

    @property
    def _only_names_channels(self) -> bool:
        """True if there are settings of single channels only, and so of all channels."""
        defaults = ChannelIntensityConfig()
        plain = all(getattr(self, key) == getattr(defaults, key) for key in ChannelIntensityConfig.model_fields)
        return self.channels is not None and plain

    @property
    def modes(self) -> set[str]:
        """The modes of all channels."""
        own = set() if self._only_names_channels else {self.mode}
        return own | {setting.mode for setting in (self.channels or {}).values()}

    @property
    def is_unit_range(self) -> bool:
        """True if the normalised intensities of all channels lie from 0 to 1."""
        return self.modes <= {"window", "rescale"}

    def of_channels(self, names: Sequence[str]) -> list[ChannelIntensityConfig]:
        """The settings of each channel.

        Args:
            names: of the channels, in the order of the image.
        """
        named = {channel_key(name): setting for name, setting in (self.channels or {}).items()}
        return [named.get(channel_key(name), self) for name in names]

    def problems(self, names: Sequence[str]) -> list[str]:
        """List the names in `channels` that the data set does not have, and channels without a setting.

        Args:
            names: of the data set's channels.
        """
        if self.channels is None:
            return []
        present = ", ".join(names)
        known = {channel_key(name) for name in names}
        given = {channel_key(name) for name in self.channels}
        problems = [
            f"data.intensity.channels.{name}: the data set has no such channel (it has {present}); correct the name"
            for name in self.channels
            if channel_key(name) not in known
        ]
        lacking = [name for name in names if channel_key(name) not in given]
        if self._only_names_channels and lacking:
            problems.append(
                f"data.intensity: there is no setting for {', '.join(lacking)}; name every channel, or add settings for"
                " the others beside channels"
            )
        return problems


def channel_key(name: str) -> str:
    """The form of a channel's name in which names are compared: without upper case and repeated spaces."""
    return " ".join(name.split()).casefold()


class CropForegroundConfig(SectionWithOptions):
    """Crop each volume to the box of the voxels above a raw intensity (the body without the air)."""

    left_out: ClassVar[tuple[str, ...]] = ("channel",)

    threshold: float
    """Raw intensity: the box holds all voxels above it."""
    margin: Annotated[int, Field(ge=0)] = 4
    """Voxels added on every side."""
    channel: str | None = None
    """Name of the channel that defines the box (such as CT); null is all channels together."""
