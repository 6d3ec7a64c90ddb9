"""Sections of `augment` that move voxels: flips, turns, rotation, zoom, shear and deformation."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from fusionseg.config.section import FloatTriple, Pair, Probability, Section, SectionWithOptions

Axis = Literal["x", "y", "z"]
AXES: tuple[Axis, Axis, Axis] = ("x", "y", "z")
Axes = Annotated[tuple[Axis, ...], Field(strict=False, min_length=1, max_length=3)]
LabelPair = Annotated[tuple[str, ...], Field(strict=False)]
MovedAxes = Literal["all", "auto", "in_plane"] | Annotated[tuple[Axis, Axis], Field(strict=False)]


class FlipConfig(Section):
    """Flip some axes, each with the same probability."""

    prob: Probability = 0.5
    """Probability of a flip, for each of `axes` separately."""
    axes: Axes = AXES
    """Axes that are flipped: x (left-right), y (back-front), z (feet-head). `predict --tta` flips the same axes,
    and is refused if none is flipped."""

    @field_validator("axes")
    @classmethod
    def _once_each(cls, axes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(axes)) != len(axes):
            raise ValueError(f"expected each axis once, got {list(axes)}")
        return axes


class RotateConfig(Section):
    """Rotate by three random angles, one about each axis."""

    prob: Probability = 0.1
    """Probability that a sample is changed."""
    degrees: Annotated[float, Field(ge=0, le=180)] | FloatTriple = 15.0
    """Each angle is drawn uniformly from [-degrees, degrees]. A list has the limit for the rotation about each axis:
    [0, 0, 15] rotates in the plane of x and y."""

    @field_validator("degrees")
    @classmethod
    def _within_limits(cls, degrees: float | tuple[float, ...]) -> float | tuple[float, ...]:
        if isinstance(degrees, tuple) and not all(0 <= limit <= 180 for limit in degrees):
            raise ValueError(f"expected three limits from 0 to 180, got {list(degrees)}")
        return degrees

    @property
    def limits(self) -> tuple[float, float, float]:
        """The largest angle about each axis, in degrees."""
        return self.degrees if isinstance(self.degrees, tuple) else (self.degrees,) * 3


class ScaleConfig(SectionWithOptions):
    """Zoom in or out by one factor for all axes, or by one for each axis."""

    left_out: ClassVar[tuple[str, ...]] = ("per_axis",)

    prob: Probability = 0.1
    """Probability that a sample is changed."""
    factor: Annotated[float, Field(ge=0, lt=0.9)] | Pair = 0.1
    """The zoom is drawn uniformly from [1 - factor, 1 + factor]; above 1, structures look larger. A list is the range
    itself: [0.7, 1.4]."""
    per_axis: bool = False
    """Draw a zoom for each axis (anisotropic zoom)."""

    @field_validator("factor")
    @classmethod
    def _a_range(cls, factor: float | tuple[float, float]) -> float | tuple[float, float]:
        if isinstance(factor, tuple) and not 0.1 < factor[0] <= factor[1]:
            raise ValueError(f"expected [lowest, highest] with a lowest zoom above 0.1, got {list(factor)}")
        return factor

    @property
    def span(self) -> tuple[float, float]:
        """The middle of the range of zooms, and half its width."""
        if isinstance(self.factor, tuple):
            return (self.factor[0] + self.factor[1]) / 2, (self.factor[1] - self.factor[0]) / 2
        return 1, self.factor


class ShearConfig(Section):
    """Shear: each axis is displaced along each other axis in proportion."""

    prob: Probability = 0.1
    """Probability that a sample is changed."""
    degrees: Annotated[float, Field(ge=0, le=45)] = 10.0
    """Each of the six angles (two for each pair of axes) is drawn uniformly from [-degrees, degrees]. A displacement is
    the tangent of its angle times the distance, in mm. Volumes stay the same."""


class Rotate90Config(Section):
    """Turn by 90, 180 or 270 degrees in the plane of two axes, without interpolation."""

    prob: Probability = 0.5
    """Probability that a sample is turned. Plane and number of quarter turns are drawn uniformly. The planes are those
    in which the patch has equal sides and voxels equal sizes."""


class ElasticConfig(Section):
    """Deform smoothly: random displacements at the points of a coarse grid, interpolated in between."""

    prob: Probability = 0.1
    """Probability that a sample is changed."""
    spacing: Annotated[int, Field(ge=4)] = 16
    """Voxels between the points of the coarse grid."""
    magnitude: Annotated[float, Field(ge=0)] = 2.0
    """Standard deviation of the displacement at a grid point, in voxels."""


def pair_problem(pairs: tuple[tuple[str, ...], ...]) -> str | None:
    """The problem of the pairs of `augment.mirror_pairs`; None if they are sound.

    Args:
        pairs: of label names.
    """
    for pair in pairs:
        if len(pair) != 2:
            return f"expected pairs of two names, such as [kidney_left, kidney_right], got {list(pair)}"
        if pair[0] == pair[1]:
            return f"{list(pair)}: a pair needs two labels; a label that is its own mirror image needs no pair"
    names = Counter(name for pair in pairs for name in pair)
    if repeated := [name for name, count in names.items() if count > 1]:
        return f"{', '.join(repeated)} is in two pairs; name each label once"
    return None
