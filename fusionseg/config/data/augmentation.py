"""The section `augment`: random changes of the training samples."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from fusionseg.config.data.parts import AugmentationPart
from fusionseg.config.section import Probability, Section, SectionWithOptions


class ShiftIntensityConfig(Section):
    """Add one random value to the whole patch."""

    prob: Probability = 0.5
    """Probability that a sample is changed."""
    offset: Annotated[float, Field(ge=0)] = 0.1
    """The value is drawn uniformly from [-offset, offset], in units of the prepared image."""


class ScaleIntensityConfig(Section):
    """Multiply the whole patch by one random factor."""

    prob: Probability = 0.5
    """Probability that a sample is changed."""
    factor: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """The factor is drawn uniformly from [1 - factor, 1 + factor]."""


class NoiseConfig(Section):
    """Add Gaussian noise."""

    prob: Probability = 0.1
    """Probability that a sample is changed."""
    std: Annotated[float, Field(ge=0)] = 0.05
    """Highest standard deviation; each sample draws its own from [0, std]."""


class RotateConfig(Section):
    """Rotate by three random angles, one about each axis."""

    prob: Probability = 0.1
    """Probability that a sample is changed."""
    degrees: Annotated[float, Field(ge=0, le=180)] = 15.0
    """Each angle is drawn uniformly from [-degrees, degrees]."""


class ScaleConfig(Section):
    """Zoom in or out by one factor for all axes."""

    prob: Probability = 0.1
    """Probability that a sample is changed."""
    factor: Annotated[float, Field(ge=0, lt=0.9)] = 0.1
    """The factor is drawn uniformly from [1 - factor, 1 + factor]; above 1, structures look larger."""


class ElasticConfig(Section):
    """Deform smoothly: random displacements at the points of a coarse grid, interpolated in between."""

    prob: Probability = 0.1
    """Probability that a sample is changed."""
    spacing: Annotated[int, Field(ge=4)] = 16
    """Voxels between the points of the coarse grid."""
    magnitude: Annotated[float, Field(ge=0)] = 2.0
    """Standard deviation of the displacement at a grid point, in voxels."""


class AugmentConfig(SectionWithOptions):
    """Random changes of the training samples, on the training device. Null switches a change off."""

    left_out: ClassVar[tuple[str, ...]] = ("also",)

    flip: Probability = 0.5
    """Probability of a flip, for each axis separately."""
    shift_intensity: ShiftIntensityConfig | None = None
    """Add one random value to the whole patch."""
    scale_intensity: ScaleIntensityConfig | None = None
    """Multiply the whole patch by one random factor."""
    noise: NoiseConfig | None = None
    """Add Gaussian noise."""
    rotate: RotateConfig | None = None
    """Rotate by random angles."""
    scale: ScaleConfig | None = None
    """Zoom in or out."""
    elastic: ElasticConfig | None = None
    """Deform smoothly."""
    also: Annotated[tuple[AugmentationPart, ...], Field(strict=False)] = ()
    """Further augmentations by dotted path, applied after those above: your own, or random dictionary transforms of
    MONAI."""
