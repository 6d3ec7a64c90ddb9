"""Purposes of random numbers: each use has a counter of its own, so that no use changes the numbers of another."""

from __future__ import annotations

import hashlib
from enum import IntEnum


class Purpose(IntEnum):
    """The use of a random number. It is part of the generator's counter, so the values must never change."""

    ORDER = 0
    CENTRE = 1
    FLIP = 2
    SHIFT = 3
    SCALE_INTENSITY = 4
    NOISE = 5
    ROTATE = 6
    ZOOM = 7
    ELASTIC = 8
    NETWORK = 9
    HIDDEN = 10
    HIDDEN_IN_VALIDATION = 11
    SHEAR = 12
    ROTATE90 = 13
    EPOCH_START = 14
    SHARE = 15
    SHARE_ORDER = 16
    WINDOW = 17
    WINDOW_ORDER = 18


FIRST_NAMED_PURPOSE = 1 << 61
"""Purposes of built-in augmentations that have no entry in `Purpose` are not below this one."""
FIRST_OUTSIDE_PURPOSE = 1 << 62
"""Purposes of augmentations from outside are not below this one, so that they never meet those of built-in ones."""


def named_purpose(name: str) -> int:
    """The purpose of a built-in augmentation that has no entry in `Purpose`. It depends on the name alone.

    Args:
        name: its key in the section `augment`.
    """
    return FIRST_NAMED_PURPOSE + _digest(name)


def outside_purpose(name: str, occurrence: int) -> int:
    """The purpose of an augmentation from outside. It depends on the name, so other augmentations do not change it.

    Args:
        name: its dotted path.
        occurrence: number of augmentations of this name before it.
    """
    return FIRST_OUTSIDE_PURPOSE + _digest(f"{name}#{occurrence}")


def _digest(text: str) -> int:
    """A number below 2^56 that belongs to a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")
