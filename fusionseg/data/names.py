"""Names of channels and labels: two parties are matched by name, never by number alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_GENERIC = re.compile(r"(image|channel|modality|m)?[ _-]?\d*")
"""Names that say nothing of what a channel holds, such as those given where the data set states none."""


def label_order(wanted: Mapping[int, str], given: Mapping[int, str]) -> tuple[int, ...] | None:
    """The value in `given` of each class of `wanted`, in the order of the latter's values.

    The background is 0 for both, however it is called.

    Returns:
        None where the names of the foreground classes are not the same.
    """
    own, other = ([names[value] for value in sorted(names) if value] for names in (wanted, given))
    order = _order(own, other)
    return None if order is None else (0, *(position + 1 for position in order))


def channel_order(wanted: Sequence[str], given: Sequence[str]) -> tuple[int, ...] | None:
    """The position in `given` of each channel of `wanted`.

    Channels without names of their own are compared by their number alone.

    Returns:
        None where the names, or their numbers, are not the same.
    """
    order = _order(wanted, given)
    if order is None and len(wanted) == len(given) and (_are_generic(wanted) or _are_generic(given)):
        return tuple(range(len(wanted)))
    return order


def _are_generic(names: Sequence[str]) -> bool:
    return all(_GENERIC.fullmatch(name.strip().lower()) for name in names)


def _order(wanted: Sequence[str], given: Sequence[str]) -> tuple[int, ...] | None:
    if list(wanted) == list(given):
        return tuple(range(len(wanted)))
    own, other = ([" ".join(name.split()).casefold() for name in names] for names in (wanted, given))
    if sorted(own) != sorted(other) or len(set(own)) != len(own):
        return None
    return tuple(other.index(name) for name in own)
