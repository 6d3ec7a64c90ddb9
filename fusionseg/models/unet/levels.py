"""Checks of the levels of a U-Net."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self, TypeVar

from pydantic import ValidationInfo

from fusionseg.config.section import is_recorded


class WithHeads(Protocol):
    """The section of a network that may have heads at lower resolutions."""

    fewest_levels_with_heads: ClassVar[int]
    """Number of levels from which on there is such a head."""

    @property
    def deep_supervision(self) -> bool: ...

    def model_copy(self, *, update: Mapping[str, Any]) -> Self: ...


AnyWithHeads = TypeVar("AnyWithHeads", bound=WithHeads)


def at_least_two_levels(channels: tuple[int, ...]) -> tuple[int, ...]:
    """Return the channels of the levels, if there are at least two levels of at least one channel.

    Raises:
        ValueError: there are fewer levels or channels.
    """
    if len(channels) < 2 or min(channels) < 1:
        raise ValueError(f"expected at least two levels of at least one channel, got {list(channels)}")
    return channels


def with_possible_heads(section: AnyWithHeads, info: ValidationInfo, key: str) -> AnyWithHeads:
    """Return the section of a network, if its deep supervision has a head at a lower resolution.

    The section of an older run may have none; it is returned without deep supervision, which is the same network.

    Args:
        section: the section.
        info: of the validation.
        key: the key with one entry for each level.

    Raises:
        ValueError: it has deep supervision and too few levels.
    """
    entries, fewest = getattr(section, key), section.fewest_levels_with_heads
    if not section.deep_supervision or len(entries) >= fewest:
        return section
    if is_recorded(info):
        return section.model_copy(update={"deep_supervision": False})
    raise ValueError(
        f"deep_supervision: needs at least {fewest} levels to have a head at a lower resolution, got {key}"
        f" {list(entries)}; set it to false, or add a level"
    )
