"""The other keys of a section whose `name` changes: those that the new name takes are kept, the rest is dropped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from fusionseg.config.parts.open_section import open_section_of
from fusionseg.config.schema import RunConfig
from fusionseg.config.section import Section

OPEN_SECTIONS = {
    key: open_section for key, field in RunConfig.model_fields.items() if (open_section := open_section_of(field))
}


@dataclass(frozen=True)
class Dropped:
    """Keys that a change of name has dropped. The new network, loss, ... has its defaults for them, or no such keys."""

    section: str
    old: str
    new: str
    keys: Mapping[str, Any]
    from_file: bool
    """True if a file that extends another one starts the section anew; False for a sweep or the command line."""

    def __str__(self) -> str:
        keys = ", ".join(f"{key}={_plain(value)}" for key, value in self.keys.items())
        return f"{self.section}.name {self.old} -> {self.new}: dropped {keys}"


def is_renamed(section: str, old: Any, new: Any) -> bool:
    """Tell whether laying `new` over `old` gives the section another name."""
    return (
        section in OPEN_SECTIONS
        and isinstance(old, Mapping)
        and isinstance(new, Mapping)
        and "name" in new
        and new["name"] != _name(section, old)
    )


def _name(section: str, values: Mapping[str, Any]) -> Any:
    """The name of a section's values; `model` has no default."""
    return values.get("name", OPEN_SECTIONS[section].default)


def carry_over(section: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Select the keys of a section that are valid under its new name too.

    Keys that a name itself sets (a network's `fusion`) are not carried over.

    Args:
        new: the name, and the keys that are given with it.
    """
    kind = OPEN_SECTIONS[section].section_of(new)
    if kind is None or not _is_valid(kind, new):  # then the message is about `new` alone
        return {}
    own = getattr(kind, "set_by_name", ())
    left = {key: value for key, value in old.items() if key in kind.model_fields and key not in (*own, *new)}
    if _is_valid(kind, {**left, **new}):
        return left
    kept: dict[str, Any] = {}
    while True:  # some are valid only together: strides with as many channels
        more = [key for key in left if key not in kept and _is_valid(kind, {**kept, key: left[key], **new})]
        if not more:
            return {key: value for key, value in left.items() if key in kept}
        kept[more[0]] = left[more[0]]


def dropped(
    section: str, old: Mapping[str, Any], new: Mapping[str, Any], kept: Mapping[str, Any], *, from_file: bool
) -> Dropped | None:
    """The keys that a change of name has dropped; None if there are none. Keys that are given anew, or that have their
    default, do not count."""
    kind = OPEN_SECTIONS[section].section_of(new)
    fields = kind.model_fields if kind is not None else {}
    left_out = ("name", *kept, *new)
    defaults = {key: field.get_default(call_default_factory=True) for key, field in fields.items()}
    keys = {
        key: value
        for key, value in old.items()
        if key not in left_out and (key not in defaults or _plain(value) != _plain(defaults[key]))
    }
    return Dropped(section, str(_name(section, old)), str(new["name"]), keys, from_file) if keys else None


def _is_valid(kind: type[Section], values: Mapping[str, Any]) -> bool:
    try:
        kind.model_validate(dict(values))
    except ValidationError:
        return False
    return True


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
