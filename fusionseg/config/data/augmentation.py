"""The section `augment`: random changes of the training samples."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, ClassVar

from pydantic import Field, create_model

from fusionseg.config.data.parts import AugmentationPart
from fusionseg.config.registry import augmentations
from fusionseg.config.section import Probability, Section, SectionWithOptions


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


class _FlipConfig(SectionWithOptions):
    """The key of a section `augment` that comes before those of the intensities."""

    flip: Probability = 0.5
    """Probability of a flip, for each axis separately."""


_STATED = ("shift_intensity", "scale_intensity", "noise")
"""Intensity augmentations that every dump states. The others are left out while they are off, so that a new one changes
neither the dump nor the hash of a configuration without it."""


def _with_intensities(base: type[SectionWithOptions]) -> Any:
    """Add a key for each registered intensity augmentation to a section class. Null, the default, switches it off."""
    fields: Any = {
        name: (section | None, Field(None, description=inspect.cleandoc(section.__doc__).partition("\n\n")[0]))
        for name, section in augmentations.built_in().items()
    }
    return create_model("IntensitiesConfig", __base__=base, __module__=__name__, **fields)


class AugmentConfig(_with_intensities(_FlipConfig)):  # type: ignore[misc]
    """Random changes of the training samples, on the training device. Null switches a change off."""

    left_out: ClassVar[tuple[str, ...]] = ("also", *(key for key in augmentations.built_in() if key not in _STATED))

    rotate: RotateConfig | None = None
    """Rotate by random angles."""
    scale: ScaleConfig | None = None
    """Zoom in or out."""
    elastic: ElasticConfig | None = None
    """Deform smoothly."""
    also: Annotated[tuple[AugmentationPart, ...], Field(strict=False)] = ()
    """Further augmentations by dotted path, applied after those above: your own, or random dictionary transforms of
    MONAI."""

    @property
    def intensities(self) -> dict[str, Any]:
        """The sections of the intensity augmentations that are on, by key, in the order in which they are applied."""
        found = {name: getattr(self, name) for name in augmentations.built_in()}
        return dict(sorted(((k, v) for k, v in found.items() if v is not None), key=lambda item: item[1].order))
