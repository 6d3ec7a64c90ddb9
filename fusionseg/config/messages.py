"""Validation errors as messages for the user: key, file and line, the problem, the fix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from fusionseg.config.parts.open_section import open_section_of
from fusionseg.config.section import Section
from fusionseg.config.yaml_location import KeyPath, Locations
from fusionseg.utils.errors import suggest

_TYPES = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a string",
    "model_type": "a section (`key: value` lines under it)",
    "model_attributes_type": "a section (`key: value` lines under it)",
    "dict_type": "a section (`key: value` lines under it)",
    "tuple_type": "a list such as [..., ...]",
    "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than": ("a value above", "gt"),
    "greater_than_equal": ("a value of at least", "ge"),
    "less_than": ("a value below", "lt"),
    "less_than_equal": ("a value of at most", "le"),
    "multiple_of": ("a multiple of", "multiple_of"),
    "string_pattern_mismatch": ("a string that matches", "pattern"),
}


def explain(error: ValidationError, raw: Mapping[str, Any], locations: Locations, kind: type[Section]) -> list[str]:
    """Write one message for each problem that pydantic found.

    Args:
        error: the error that the validation of `raw` raised.
        raw: the plain values.
        locations: the file and line of each key.
        kind: the section class that the values were validated as.
    """
    by_key: dict[KeyPath, list[tuple[dict[str, Any], type[Section] | None]]] = {}
    for item in error.errors(include_url=False):
        key, section = _resolve(item["loc"], raw, kind)
        by_key.setdefault(key, []).append((dict(item), section))
    lines: list[str] = []
    for written, items in by_key.items():
        if _belongs_to_inner(written, items, by_key):
            continue
        for text in _messages(items, written):
            key = written
            if items[0][0]["type"] == "value_error" and (named := re.match(r"([A-Za-z0-9_.]+): ", text)):
                # The message of a check across keys begins with the key that it is about.
                key, text = (*written, *named[1].split(".")), text[named.end() :]
            location = _nearest(key, locations)
            name = ".".join(map(str, key)) or "configuration"
            lines.append(f"{name}{f' ({location})' if location else ''}: {text}")
    return lines


def _resolve(
    loc: tuple[str | int, ...], raw: Mapping[str, Any], kind: type[Section]
) -> tuple[KeyPath, type[Section] | None]:
    """The path as the user wrote it, and the section that holds its last key.

    pydantic puts tags between the keys for the members of a union. A part that is neither written nor a field of the
    section is such a tag.
    """
    path: list[str | int] = []
    here: Any = raw
    section: type[Section] | None = kind
    holder: type[Section] | None = kind
    for part in loc:
        if isinstance(part, int):
            inside = isinstance(here, list | tuple) and part < len(here)
            here = here[part] if inside else None
            path.append(part)
            continue
        field = _field(section, part)
        written = isinstance(here, Mapping) and part in here
        if field is None and not written:
            continue
        here = here[part] if written else None
        holder, section = section, _section_of(field, here)
        path.append(part)
    return tuple(path), holder


def _field(section: type[Section] | None, key: str) -> FieldInfo | None:
    fields = section.model_fields if section is not None else {}
    return next((field for name, field in fields.items() if key == (field.alias or name)), None)


def _section_of(field: FieldInfo | None, raw: Any) -> type[Section] | None:
    """The section under a field, or that of the entries of its list; None for other values."""
    if field is None:
        return None
    open_section = open_section_of(field)
    if open_section is not None:
        return open_section.section_of(raw)
    return next(iter(_sections_in(field.annotation)), None)


def _sections_in(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _sections_in(argument)]


def _nearest(key: KeyPath, locations: Locations) -> str:
    """The location of a key, or of the section around it."""
    return next((locations[key[:length]] for length in range(len(key), 0, -1) if key[:length] in locations), "")


def _belongs_to_inner(
    key: KeyPath, items: list[tuple[dict[str, Any], type[Section] | None]], by_key: Mapping[KeyPath, Any]
) -> bool:
    """Tell whether a list or a section is refused as a whole only because another type fits it except for a part."""
    inner = any(other[: len(key)] == key and len(other) > len(key) for other in by_key)
    return inner and all(item["type"] in {*_TYPES, "literal_error"} for item, _ in items)


def _messages(items: list[tuple[dict[str, Any], type[Section] | None]], key: KeyPath) -> list[str]:
    """Messages on one value. If each of several types refuses the value, that makes one message."""
    mismatches = [item for item, _ in items if item["type"] in _TYPES]
    if len(mismatches) < len(items) and any(item["type"] not in {*_TYPES, "literal_error"} for item, _ in items):
        items = [(item, section) for item, section in items if item["type"] not in _TYPES]  # one type fits but for this
    elif len(mismatches) == len(items) > 1:
        expected = " or ".join(dict.fromkeys(_TYPES[item["type"]] for item in mismatches))
        return [f"expected {expected}, got {mismatches[0].get('input')!r}"]
    literals = [name for item, _ in items if item["type"] == "literal_error" for name in _literals(item)]
    others = [
        text for item, section in items if item["type"] != "literal_error" for text in _message(item, key, section)
    ]
    if literals and others:
        return [others[0].replace(", got ", f" or {' or '.join(literals)}, got ", 1)]
    return list(dict.fromkeys(others or [text for item, section in items for text in _message(item, key, section)]))


def _literals(item: dict[str, Any]) -> list[str]:
    """The valid values of a literal, from pydantic's text "'a', 'b' or 3"."""
    return [text or digits for text, digits in re.findall(r"'([^']*)'|(\d+)", str(item["ctx"]["expected"]))]


def _message(item: dict[str, Any], key: KeyPath, section: type[Section] | None) -> list[str]:
    """Messages on one error of pydantic; a check of ours may have found several problems."""
    kind, given, context = item["type"], item.get("input"), item.get("ctx", {})
    if kind == "value_error":
        return str(context["error"]).split("\n")
    if kind == "extra_forbidden":
        fields = section.model_fields if section is not None else {}
        return [f"unknown key; {suggest(str(key[-1]), [field.alias or name for name, field in fields.items()])}"]
    if kind == "literal_error":
        return [f"unknown value {given!r}; {suggest(str(given), _literals(item))}"]
    if kind == "missing":
        if key == ("model",):
            return ["is missing; add model: {name: swin_fusion_od}, or extends: base.yaml and a name"]
        return ["is missing; add it"]
    if kind in ("too_long", "too_short"):
        bound, limit = ("at most", "max_length") if kind == "too_long" else ("at least", "min_length")
        entries = "entry" if context[limit] == 1 else "entries"
        return [f"expected {bound} {context[limit]} {entries}, got {given!r}"]
    if kind in _TYPES:
        quote = "; put it in quotes" if kind == "string_type" and isinstance(given, int | float) else ""
        return [f"expected {_TYPES[kind]}, got {given!r}{quote}"]
    if kind in _BOUNDS:
        bound, name = _BOUNDS[kind]
        limit = context[name]
        shown = f"{limit:g}" if isinstance(limit, float) else limit
        return [f"expected {bound} {shown}, got {given!r}"]
    message = str(item["msg"])
    return [f"{message[0].lower()}{message[1:]}, got {given!r}"]
