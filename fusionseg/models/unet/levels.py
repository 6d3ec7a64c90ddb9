"""Checks of the levels of a U-Net."""

from __future__ import annotations


def at_least_two_levels(channels: tuple[int, ...]) -> tuple[int, ...]:
    """Return the channels of the levels, if there are at least two levels of at least one channel.

    Raises:
        ValueError: there are fewer levels or channels.
    """
    if len(channels) < 2 or min(channels) < 1:
        raise ValueError(f"expected at least two levels of at least one channel, got {list(channels)}")
    return channels
