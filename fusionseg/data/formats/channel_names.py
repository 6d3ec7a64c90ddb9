"""Names of channels and classes: those of channels are read from a JSON, both are matched with another data set."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_GENERIC = re.compile(r"(image|channel|modality|m)?[ _-]?\d*")
"""Names that do not describe the content of a channel, such as the names of channels for which none is stated."""


def label_order(wanted: Mapping[int, str], given: Mapping[int, str]) -> tuple[int, ...] | None:
    """Find the value in one data set of each class of another.

    The background is 0 for both, whatever its name.

    Args:
        wanted: value -> name, of the classes to find.
        given: value -> name, of the data set to search.

    Returns:
        Values of `given`, in the order of the values of `wanted`; None if the names of the foreground classes differ.
    """
    own, other = ([names[value] for value in sorted(names) if value] for names in (wanted, given))
    order = _order(own, other)
    return None if order is None else (0, *(position + 1 for position in order))


def channel_order(wanted: Sequence[str], given: Sequence[str]) -> tuple[int, ...] | None:
    """Find the position in one data set of each channel of another.

    Channels without descriptive names are matched by position, if both data sets have the same number of channels.

    Args:
        wanted: names of the channels to find.
        given: names of the channels to search.

    Returns:
        Positions in `given`; None if the names, or the numbers of channels, differ.
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


def channel_names(stated: Any, source: Path, problems: list[str]) -> tuple[str, ...]:
    """Read the names of the channels.

    Args:
        stated: the entry of the JSON.
        source: the JSON file.
        problems: gets an entry that cannot be read.

    Returns:
        The names in order; empty if the file names none.
    """
    if stated is None or isinstance(stated, (str, list)):
        return tuple(map(str, stated if isinstance(stated, list) else [] if stated is None else [stated]))
    names = _numbered(stated) if isinstance(stated, dict) else None
    if names is None or sorted(names) != list(range(len(names))):
        problems.append(f'{source}: channels are {stated!r}; write them as {{"0": "CT", "1": "PET"}}')
        return ()
    return tuple(names[i] for i in range(len(names)))


def _numbered(stated: dict[Any, Any]) -> dict[int, str] | None:
    """Read {"0": "a"} (MSD) or {"a": 0} (nnU-Net) as {0: "a"}.

    Returns:
        None if the entry has another form, or names a value twice.
    """

    def is_integer(value: Any) -> bool:
        return type(value) is int or (isinstance(value, str) and value.isdecimal())

    pairs = list(stated.items())
    if not all(is_integer(value) and isinstance(name, str) for value, name in pairs):
        pairs = [(value, name) for name, value in pairs]
    if not all(is_integer(value) and isinstance(name, str) for value, name in pairs):
        return None
    numbered = {int(value): name for value, name in pairs}
    return numbered if len(numbered) == len(pairs) else None
