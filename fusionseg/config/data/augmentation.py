"""The section `augment`: random changes of the training samples."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, ClassVar

from pydantic import Field, create_model, field_validator, model_validator

from fusionseg.config.data.augmentation_presets import PresetName, expanded, name_to_preset
from fusionseg.config.data.parts import AugmentationPart
from fusionseg.config.data.spatial import (
    ElasticConfig,
    FlipConfig,
    LabelPair,
    MovedAxes,
    Rotate90Config,
    RotateConfig,
    ScaleConfig,
    ShearConfig,
    pair_problem,
)
from fusionseg.config.registry import augmentations
from fusionseg.config.section import Probability, SectionWithOptions


class _ExactConfig(SectionWithOptions):
    """The keys of a section `augment` that come before those of the intensities: changes without interpolation."""

    preset: PresetName | None = None
    """Start from a named section; the keys beside it change single values of it. The resolved configuration has the
    values in place of the name. `augment: nnunet` is short for `augment: {preset: nnunet}`. A preset replaces the
    section `augment` of a file that is extended."""
    flip: Probability | FlipConfig = 0.5
    """Probability of a flip, for each axis separately; or a section, to flip some of the axes only. Null means 0."""
    mirror_pairs: Annotated[tuple[LabelPair, ...], Field(strict=False)] = ()
    """Pairs of labels that are mirror images of each other, such as [[kidney_left, kidney_right]]. A flip of the
    left-right axis exchanges the two labels of each pair, in training and in `predict --tta`. Regions follow from
    their classes."""
    rotate90: Rotate90Config | None = None
    """Turn by multiples of 90 degrees."""


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


class AugmentConfig(_with_intensities(_ExactConfig)):  # type: ignore[misc]
    """Random changes of the training samples, on the training device. Null switches a change off."""

    left_out: ClassVar[tuple[str, ...]] = (
        *("preset", "also", "mirror_pairs", "rotate90", "shear", "axes"),
        *(key for key in augmentations.built_in() if key not in _STATED),
    )

    rotate: RotateConfig | None = None
    """Rotate by random angles."""
    scale: ScaleConfig | None = None
    """Zoom in or out."""
    shear: ShearConfig | None = None
    """Shear."""
    elastic: ElasticConfig | None = None
    """Deform smoothly."""
    axes: MovedAxes = "all"
    """Axes that rotate, rotate90, scale, shear, elastic and low_resolution may change. `in_plane` leaves the
    through-plane axis alone: that of `model.view`, or along which the patch has one voxel, or along which voxels are
    largest, or else along which the patch is shortest. `auto` is `in_plane` for such a network or patch, and where
    voxels are more than 3 times larger along one axis than along the others, or the patch more than 3 times shorter
    (the rule of nnU-Net for 2D augmentation), else `all`. [x, y] states the plane. `blur` changes all axes, as in
    nnU-Net."""
    also: Annotated[tuple[AugmentationPart, ...], Field(strict=False)] = ()
    """Further augmentations by dotted path, applied after those above: your own, or random dictionary transforms of
    MONAI."""

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, raw: Any) -> Any:
        return expanded(name_to_preset(raw))

    @field_validator("flip", mode="before")
    @classmethod
    def _null_is_off(cls, flip: Any) -> Any:
        return 0.0 if flip is None else flip

    @field_validator("mirror_pairs")
    @classmethod
    def _sound_pairs(cls, pairs: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        if problem := pair_problem(pairs):
            raise ValueError(problem)
        return pairs

    @field_validator("axes")
    @classmethod
    def _two_axes(cls, axes: str | tuple[str, str]) -> str | tuple[str, str]:
        if isinstance(axes, tuple) and axes[0] == axes[1]:
            raise ValueError(f"expected two different axes, got {list(axes)}")
        return axes

    @model_validator(mode="after")
    def _pairs_have_an_effect(self) -> AugmentConfig:
        if self.mirror_pairs and not (self.flips.prob and "x" in self.flips.axes):
            raise ValueError(
                "mirror_pairs: has no effect, because the left-right axis is not flipped; add x to flip.axes with a"
                " probability above 0, or remove it"
            )
        return self

    @property
    def flips(self) -> FlipConfig:
        """The section of the flips, also where `flip` is a probability alone."""
        return self.flip if isinstance(self.flip, FlipConfig) else FlipConfig(prob=self.flip)

    @property
    def intensities(self) -> dict[str, Any]:
        """The sections of the intensity augmentations that are on, by key, in the order in which they are applied."""
        found = {name: getattr(self, name) for name in augmentations.built_in()}
        return dict(sorted(((k, v) for k, v in found.items() if v is not None), key=lambda item: item[1].order))
