"""Changes of a section's `name`: other keys that are valid under the new name are kept, the rest are dropped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from fusionseg.config.parts.open_section import open_section_of
from fusionseg.config.schema import RunConfig
from fusionseg.config.section import RECORDED, Section

OPEN_SECTIONS = {
    key: open_section for key, field in RunConfig.model_fields.items() if (open_section := open_section_of(field))
}


@dataclass(frozen=True)
class Dropped:
    """Keys that a change of name has dropped. The new section has its defaults for them, or has no such keys."""

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
    """The name in a section's values, or the default name; None for `model`, which has no default."""
    return values.get("name", OPEN_SECTIONS[section].default)


def carry_over(section: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Select the keys of a section that are valid under its new name too.

    Keys whose values belong to the name (a network's `fusion`) are not carried over.

    Args:
        section: the key of the section.
        old: its values under the old name.
        new: the name, and the keys that are given with it.
    """
    kind = OPEN_SECTIONS[section].section_of(new)
    if kind is None or not _is_valid(kind, new):  # the validation that follows then reports `new` alone
        return {}
    left_out = (*getattr(kind, "set_by_name", ()), *new)
    candidates = {key: value for key, value in old.items() if key in kind.model_fields and key not in left_out}
    if _is_valid(kind, {**candidates, **new}):
        return candidates
    kept: dict[str, Any] = {}
    while True:  # a key may become valid when another one is kept
        more = [key for key in candidates if key not in kept and _is_valid(kind, {**kept, key: candidates[key], **new})]
        if not more:
            return {key: value for key, value in candidates.items() if key in kept}
        kept[more[0]] = candidates[more[0]]


def dropped(
    section: str, old: Mapping[str, Any], new: Mapping[str, Any], kept: Mapping[str, Any], *, from_file: bool
) -> Dropped | None:
    """Collect the keys that a change of name has dropped; None if there are none.

    Keys that `new` has too, or whose old value is the default of the new section, do not count.
    """
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
        # As for a recorded configuration: where a default does not suit the keys that are carried over, the validation
        # that follows reports it. Otherwise these keys would be dropped.
        kind.model_validate(dict(values), context=RECORDED)
    except ValidationError:
        return False
    return True


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
