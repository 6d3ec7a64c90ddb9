"""Presets of the section `augment`: a name stands for a whole section, which the resolved configuration states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

PresetName = Literal["none", "thesis", "light", "nnunet"]
PRESET = "preset"
"""The key that names a preset."""


@dataclass(frozen=True)
class Preset:
    """A named section `augment`."""

    about: str
    """Description for lists, with its source."""
    values: Mapping[str, Any]
    """The keys. Augmentations that are not among them are off."""


# Sources of `nnunet`: Isensee et al., "nnU-Net", Nature Methods 2021, supplementary note 2, and the training transforms
# of nnU-Net v2 (nnUNetTrainer.get_training_transforms). Three differences: nnU-Net draws the inverse of the zoom from
# [0.7, 1.4], multiplies the brightness after the noise, and sets voxels outside of the nonzero mask to 0 where it
# normalises by this mask. In its 2D augmentation it rotates by up to 180 degrees.
PRESETS: Mapping[PresetName, Preset] = {
    "none": Preset("no changes", {"flip": 0.0}),
    "thesis": Preset(
        "flips, intensity shift, rotation: the thesis, section 5.1",
        {
            "flip": 0.5,
            "shift_intensity": {"prob": 0.5, "offset": 0.1},
            "rotate": {"prob": 0.1, "degrees": 15.0},
        },
    ),
    "light": Preset(
        "the changes of nnunet that keep the image sharp, with half of their ranges: our choice",
        {
            "flip": 0.5,
            "scale_intensity": {"prob": 0.15, "factor": 0.125, "per_channel": True},
            "noise": {"prob": 0.1, "std": 0.05},
            "contrast": {"prob": 0.15, "factor": [0.875, 1.125]},
            "gamma": {"prob": 0.3, "exponent": [0.85, 1.25]},
            "rotate": {"prob": 0.2, "degrees": 15.0},
            "scale": {"prob": 0.2, "factor": [0.85, 1.2]},
            "axes": "auto",
        },
    ),
    "nnunet": Preset(
        "the augmentation of nnU-Net v2: its code, and supplementary note 2 of Isensee et al., 2021",
        {
            "flip": 0.5,
            "scale_intensity": {"prob": 0.15, "factor": 0.25, "per_channel": True},
            "noise": {"prob": 0.1, "std": 0.1},
            "blur": {"prob": 0.2, "sigma": [0.5, 1.0], "channel_prob": 0.5, "per_axis": True},
            "contrast": {"prob": 0.15, "factor": [0.75, 1.25], "preserve_range": True},
            "low_resolution": {"prob": 0.25, "zoom": [0.5, 1.0], "channel_prob": 0.5},
            "gamma_inverted": {"prob": 0.1, "exponent": [0.7, 1.5], "retain_stats": True},
            "gamma": {"prob": 0.3, "exponent": [0.7, 1.5], "retain_stats": True},
            "rotate": {"prob": 0.2, "degrees": 30.0},
            "scale": {"prob": 0.2, "factor": [0.7, 1.4]},
            "axes": "auto",
        },
    ),
}
assert tuple(PRESETS) == get_args(PresetName)


def name_to_preset(raw: Any) -> Any:
    """Convert the name of a preset to a section; any other value stays as it is."""
    return {PRESET: raw} if isinstance(raw, str) else raw


def names_preset(raw: Any) -> bool:
    """Tell whether a plain section `augment` names a preset. It then replaces the section of files that it extends."""
    return isinstance(raw, str) or (isinstance(raw, Mapping) and raw.get(PRESET) is not None)


def expanded(raw: Any) -> Any:
    """Replace the name of a preset by its values, under the keys that are given beside it.

    A key whose value is a section changes single values of that section of the preset: `rotate: {degrees: 10}` keeps
    its probability. Null switches an augmentation off.

    Args:
        raw: a plain section `augment`. With an unknown name it stays as it is, for the validation to refuse.
    """
    name = raw.get(PRESET) if isinstance(raw, Mapping) else None
    preset = next((preset for known, preset in PRESETS.items() if known == name), None)
    if preset is None:
        return raw
    values = dict(preset.values)
    for key, given in raw.items():
        under = values.get(key)
        values[key] = {**under, **given} if isinstance(under, Mapping) and isinstance(given, Mapping) else given
    del values[PRESET]
    return values
