"""The steps of a post-processing, and their application to a prediction.

Components have 26 neighbours. A hole is background that no path of face neighbours connects with the border of the
volume. The voxels of a removed component become background, and a filled hole gets the class around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, find_objects, label

from fusionseg.data.labels.scheme import LabelScheme
from fusionseg.runs.json_files import JsonObject, is_number

_NEIGHBOURS = np.ones((3, 3, 3), bool)

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Steps:
    """The steps for one class or region. Holes are filled first."""

    fill_holes: bool = False
    largest: bool = False
    """Keep the largest component only."""
    smallest_ml: float = 0.0
    """Remove components with a smaller volume."""

    def __str__(self) -> str:
        parts = ["holes filled"] if self.fill_holes else []
        parts += ["largest component"] if self.largest else []
        parts += [f"components of at least {self.smallest_ml:g} ml"] if self.smallest_ml else []
        return ", ".join(parts) or "-"

    def kept(self, sizes: NDArray[np.int64], voxel_ml: float) -> Mask:
        """Choose the components that stay.

        Args:
            sizes: voxels of the background and of each component.
            voxel_ml: volume of a voxel.

        Returns:
            True for each component that stays; False for the background.
        """
        # A volume that is equal to the smallest one may be a rounding error smaller.
        keep = sizes * voxel_ml >= self.smallest_ml * (1 - 1e-9)
        keep[0] = False
        if self.largest and len(sizes) > 1:
            keep &= np.arange(len(sizes)) == 1 + int(sizes[1:].argmax())
        return keep


@dataclass(frozen=True)
class PostProcessing:
    """The steps of each class or region."""

    largest_foreground: bool = False
    """Keep the largest component of all classes together, before the steps of single ones."""
    steps: Mapping[str, Steps] = field(default_factory=dict)
    """By name; without those that nothing is done for."""

    def __bool__(self) -> bool:
        return self.largest_foreground or bool(self.steps)

    def to_json(self) -> JsonObject:
        """Plain values."""
        return {
            "largest_foreground": self.largest_foreground,
            "steps": {name: asdict(steps) for name, steps in sorted(self.steps.items())},
        }

    @staticmethod
    def from_json(content: JsonObject) -> PostProcessing:
        """Make a post-processing from plain values.

        Raises:
            ValueError: they are of another form.
        """
        foreground, named = content.get("largest_foreground", False), content.get("steps", {})
        if not isinstance(foreground, bool) or not isinstance(named, dict):
            raise ValueError("expected largest_foreground: true or false, and steps: {class: ...}")
        return PostProcessing(foreground, {name: _steps_of(name, plain) for name, plain in named.items()})

    def __str__(self) -> str:
        parts = ["largest component of the foreground"] if self.largest_foreground else []
        return "; ".join([*parts, *(f"{name}: {steps}" for name, steps in self.steps.items())]) or "nothing"

    def apply(self, outputs: NDArray[Any], scheme: LabelScheme, spacing_mm: Sequence[float]) -> NDArray[Any]:
        """Process a prediction.

        Args:
            outputs: class indices (X, Y, Z); with sigmoid outputs a mask of each, bool (R, X, Y, Z).
            scheme: of the outputs.
            spacing_mm: size of a voxel along each axis.

        Returns:
            A new array of the same form.
        """
        result = outputs.copy()
        if self.largest_foreground:
            keep_largest_foreground(result, sigmoid=scheme.sigmoid)
        voxel_ml = prod(spacing_mm) / 1000
        for index, name in enumerate(scheme.output_names):
            if name in self.steps:
                _apply_steps(self.steps[name], result, index, scheme, voxel_ml)
        return result


def keep_largest_foreground(outputs: NDArray[Any], *, sigmoid: bool) -> None:
    """Set all voxels outside the largest component of the foreground to background, in place.

    Args:
        outputs: see `PostProcessing.apply`.
        sigmoid: the outputs are a mask each.
    """
    foreground: Mask = np.any(outputs, axis=0) if sigmoid else outputs > 0
    numbers, sizes = components(foreground)
    outside = ~Steps(largest=True).kept(sizes, 1.0)[numbers]
    if sigmoid:
        outputs[:, outside] = False
    else:
        outputs[outside] = 0


def components(mask: Mask) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Number the connected components of a mask from 1, and count the voxels of the background and of each.

    Args:
        mask: (X, Y, Z).
    """
    numbers, count = label(mask, _NEIGHBOURS)
    return numbers, np.bincount(numbers.ravel(), minlength=count + 1)


def with_filled_holes(mask: Mask, free: Mask) -> Mask:
    """Fill the holes of a mask.

    Args:
        mask: (X, Y, Z).
        free: voxels that may be filled; those of other classes stay.
    """
    filled: Mask = mask | (binary_fill_holes(mask) & free)
    return filled


def box_of(mask: Mask) -> tuple[slice, ...] | None:
    """The smallest box that holds all voxels of a mask; None if it is empty."""
    found: tuple[slice, ...] | None = next(iter(find_objects(mask.astype(np.uint8))), None)
    return found


def _apply_steps(steps: Steps, outputs: NDArray[Any], index: int, scheme: LabelScheme, voxel_ml: float) -> None:
    """Process one output, in place."""
    value, whole = (True, outputs[index]) if scheme.sigmoid else (index + 1, outputs)
    box = box_of(whole == value)
    if box is None:
        return
    part = whole[box]
    mask = part == value
    if steps.fill_holes:
        mask = with_filled_holes(mask, part == 0)
        part[mask] = value
    numbers, sizes = components(mask)
    part[mask & ~steps.kept(sizes, voxel_ml)[numbers]] = 0


def _steps_of(name: str, plain: Any) -> Steps:
    """The steps of a class.

    Raises:
        ValueError: the plain values are of another form.
    """
    fits = isinstance(plain, dict) and plain.keys() <= asdict(Steps()).keys()
    if fits and not isinstance(plain.get("smallest_ml", 0), bool) and is_number(plain.get("smallest_ml", 0)):
        flags = plain.get("fill_holes", False), plain.get("largest", False)
        if all(isinstance(flag, bool) for flag in flags) and plain.get("smallest_ml", 0) >= 0:
            return Steps(*flags, float(plain.get("smallest_ml", 0)))
    raise ValueError(f"steps.{name}: expected fill_holes, largest (true or false) and smallest_ml (0 or more)")
