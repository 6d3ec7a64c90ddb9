"""Checks of the levels of a U-Net."""

from __future__ import annotations


def at_least_two_levels(channels: tuple[int, ...]) -> tuple[int, ...]:
    """Refuse fewer than two levels, and levels without a channel.

    Raises:
        ValueError: there are fewer.
    """
    if len(channels) < 2 or min(channels) < 1:
        raise ValueError(f"needs at least two levels of at least one channel, and has {list(channels)}")
    return channels
