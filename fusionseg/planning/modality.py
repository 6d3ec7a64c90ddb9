"""The kind of each channel, and its normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusionseg.config.data.dataset import DataConfig
from fusionseg.config.data.preprocessing import channel_key
from fusionseg.data.fingerprint.case import CaseFingerprint
from fusionseg.data.fingerprint.fingerprint import Fingerprint
from fusionseg.planning.choices import Choice

AIR_HU = -800.0
_UNNAMED = ("image", "channel", "unknown")
"""Beginnings of channel names that do not say the modality."""
SMALL_BOX = 0.75
"""nnU-Net's threshold: below this median share of the volume, the box of the non-zero voxels has an effect."""
_TAIL = 3.0
"""An intensity is an outlier if it is above the 99.5th percentile by more than this many times the range below it."""


def is_ct(fingerprint: Fingerprint, channel: int) -> bool:
    """True if the intensities of a channel are HU: by its name, or by its values if the name says nothing.

    Args:
        fingerprint: of the data set.
        channel: its index.
    """
    name = channel_key(fingerprint.channels[channel])
    if name.startswith("ct"):
        return True
    if not name.startswith(_UNNAMED):
        return False
    lowest = [whole.minimum for case in fingerprint.cases if (whole := case.whole[channel]) is not None]
    return bool(lowest) and float(np.median(lowest)) <= AIR_HU


def plan_intensity(fingerprint: Fingerprint, given: DataConfig) -> list[Choice]:
    """Choose the normalisation of each channel.

    Args:
        fingerprint: of the data set.
        given: the section `data` of the request; a normalisation that it states is kept.
    """
    if "intensity" in given.model_fields_set:
        return []
    settings, reasons = zip(
        *(_channel(fingerprint, channel) for channel in range(len(fingerprint.channels))), strict=True
    )
    if all(setting == settings[0] for setting in settings):
        alike = f"All {len(settings)} channels are treated alike. " if len(settings) > 1 else ""
        return [Choice("data.intensity", settings[0], alike + reasons[0])]
    named = dict(zip(fingerprint.channels, settings, strict=True))
    text = " ".join(f"{name}: {reason}" for name, reason in zip(fingerprint.channels, reasons, strict=True))
    return [Choice("data.intensity", {"channels": named}, text)]


def _channel(fingerprint: Fingerprint, channel: int) -> tuple[dict[str, Any], str]:
    """The normalisation of one channel, and the reason."""
    name = fingerprint.channels[channel]
    foreground = fingerprint.foreground_intensities(channel)
    if is_ct(fingerprint, channel) and foreground is not None:
        low, high = foreground.percentile_00_5, foreground.percentile_99_5
        if low < high:
            known = "is CT" if channel_key(name).startswith("ct") else "has values of CT, with air at -1000"
            setting = {
                "mode": "zscore",
                "clip": [_short(low), _short(high)],
                "mean": _short(foreground.mean),
                "deviation": max(_short(foreground.deviation), 1e-3),
            }
            return setting, (
                f"The channel {name!r} {known}: nnU-Net's normalisation for CT. HU mean the same in every volume, so"
                f" the clip (0.5th and 99.5th percentile of the labelled voxels), the mean and the deviation are"
                f" those of the data set. Labelled voxels have {foreground.mean:.4g} ± {foreground.deviation:.4g} HU."
            )
    return _by_volume(fingerprint, channel)


def _by_volume(fingerprint: Fingerprint, channel: int) -> tuple[dict[str, Any], str]:
    """Mean 0 and deviation 1 of each volume, for intensities without a unit."""
    setting: dict[str, Any] = {"mode": "zscore"}
    reason = (
        f"The channel {fingerprint.channels[channel]!r} is not CT: intensities have no common unit, so each volume is"
        " scaled to mean 0 and deviation 1, as in nnU-Net."
    )
    measured = [case for case in fingerprint.cases if case.whole[channel] is not None]
    tails = sum(_has_tail(case, channel) for case in measured)
    if tails > len(measured) / 100:
        setting["percentiles"] = [0.5, 99.5]
        reason += (
            f" In {tails} of {len(measured)} cases single voxels are far brighter than the 99.5th percentile and would"
            " dominate mean and deviation: intensities are clipped to the percentiles first, which nnU-Net does not do."
        )
    share = float(np.median([case.nonzero_share for case in measured])) if measured else 1.0
    if share < SMALL_BOX:
        setting["nonzero"] = True
        reason += (
            f" The box of the non-zero voxels has a median of {share:.0%} of the volume (less than"
            f" {SMALL_BOX:.0%}): voxels of 0 are outside, and only the others are normalised, as in nnU-Net."
        )
    return setting, reason


def _has_tail(case: CaseFingerprint, channel: int) -> bool:
    """True if the highest intensity is far from all but a few."""
    whole = case.whole[channel]
    assert whole is not None
    low, high = whole.percentile_00_5, whole.percentile_99_5
    return whole.maximum > high + _TAIL * (high - low)


def _short(value: float) -> float:
    """A value with the digits that matter."""
    return float(f"{value:.5g}")
