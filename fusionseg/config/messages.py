"""Validation errors as a person wants to read them: key path, file and line, what is wrong, the fix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import ValidationError

from fusionseg.config.networks import network_sections
from fusionseg.config.section import Section
from fusionseg.config.yaml_location import KeyPath, Places
from fusionseg.utils.errors import suggest


def explain(error: ValidationError, raw: Mapping[str, Any], places: Places, kind: type[Section]) -> list[str]:
    """One line for each problem that pydantic found in a file of this kind."""
    by_key: dict[KeyPath, list[dict[str, Any]]] = {}
    for item in error.errors(include_url=False):
        key = _written_key(item["loc"], raw, missing=item["type"] == "missing")
        by_key.setdefault(key, []).append(dict(item))
    lines: list[str] = []
    for written, items in by_key.items():
        for text in _describe_value(items, written, kind):
            key = written
            if items[0]["type"] == "value_error" and (named := re.match(r"([a-z_.]+): ", text)):
                # A check across keys starts with the key that it blames.
                key, text = (*written, *named[1].split(".")), text[named.end() :]
            elif items[0]["type"].startswith("union_tag"):
                key = (*written, "name")
            where = _place(key, places)
            name = ".".join(map(str, key)) or "configuration"
            lines.append(f"{name}{f' ({where})' if where else ''}: {text}")
    return lines


def _written_key(loc: tuple[str | int, ...], raw: Mapping[str, Any], missing: bool) -> KeyPath:
    """The path as the user wrote it: without the tags that pydantic adds for the members of unions."""
    path: list[str | int] = []
    here: Any = raw
    for index, part in enumerate(loc):
        if isinstance(here, Mapping):
            absent = (missing and index == len(loc) - 1) or (path == ["model"] and part == "fusion")
            if part not in here and not absent:
                continue  # a tag; an absent key is one that is missing, or that the model's name sets
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int):
            here = here[part] if part < len(here) else None
        else:
            continue
        path.append(part)
    return tuple(path)


def _place(key: KeyPath, places: Places) -> str:
    for length in range(len(key), 0, -1):
        if key[:length] in places:
            return places[key[:length]]
    return ""


def _describe_value(items: list[dict[str, Any]], key: KeyPath, file: type[Section]) -> list[str]:
    """Texts for one value. A value of several types is refused by each of them: that makes one text."""
    literals = [name for item in items if item["type"] == "literal_error" for name in _literals(item)]
    others = [text for item in items if item["type"] != "literal_error" for text in _describe(item, key, file)]
    if literals and others:
        return [others[0].replace(", and is ", f" or {' or '.join(literals)}, and is ", 1)]
    return list(dict.fromkeys(others or [text for item in items for text in _describe(item, key, file)]))


def _literals(item: dict[str, Any]) -> list[str]:
    """The values that a literal takes, from pydantic's "'a', 'b' or 3"."""
    return [text or number for text, number in re.findall(r"'([^']*)'|(\d+)", str(item["ctx"]["expected"]))]


def _describe(item: dict[str, Any], key: KeyPath, file: type[Section]) -> list[str]:
    kind, given, context = item["type"], item.get("input"), item.get("ctx", {})
    shown = repr(given) if not isinstance(given, str) else f"{given!r} (a text)"
    match kind:
        case "extra_forbidden":
            return [f"unknown key. {suggest(str(key[-1]), _valid_keys(item['loc'][:-1], file))}"]
        case "union_tag_invalid":
            names = [tag.strip("' ") for tag in str(context["expected_tags"]).split(",")]
            return [f"there is no {context['tag']!r}. {suggest(str(context['tag']), names)}"]
        case "union_tag_not_found":
            names = list(network_sections())
            return [f"is missing: add one, such as name: swin_fusion_od. Valid: {', '.join(names)}"]
        case "literal_error":
            return [f"cannot be {given!r}. {suggest(str(given), _literals(item))}"]
        case "missing":
            if key == ("model",):
                return ["is not set: add model: {name: swin_fusion_od}, or extends: base.yaml and a name"]
            return ["is missing: add it"]
        case "value_error":
            return str(context["error"]).split("\n")
        case "int_type" | "int_from_float" | "float_type" | "bool_type" | "string_type":
            wanted = {
                "int": "a whole number",
                "float": "a number",
                "bool": "true or false",
                "string": "a text",
            }
            quote = ": put it in quotes" if kind == "string_type" and isinstance(given, int | float) else ""
            return [f"needs {wanted[kind.split('_')[0]]}, and is {shown}{quote}"]
        case "model_type" | "model_attributes_type" | "dict_type":
            return [f"needs a section of keys (`key: value` lines under it), and is {shown}"]
        case "tuple_type":
            return [f"needs a list, written [..., ...], and is {shown}"]
        case "too_long" | "too_short":
            return [f"{item['msg'].lower()}: {given!r}"]
        case _:
            message = str(item["msg"]).removeprefix("Input ")
            return [f"{message[0].lower()}{message[1:]}, and is {shown}"]


def _valid_keys(loc: tuple[str | int, ...], file: type[Section]) -> list[str]:
    """The keys of the section that a location of pydantic leads to."""
    section: Any = file
    for part in loc:
        members = _sections_in(section)
        if len(members) > 1 or not isinstance(part, str):  # a union: the part is the tag of one of its members
            section = next((member for member in members if part in _names_of(member)), members[0])
            continue
        section = _field_type(members[0], part)
    return [field.alias or name for name, field in _sections_in(section)[0].model_fields.items()]


def _field_type(section: type[Section], key: str) -> Any:
    for name, field in section.model_fields.items():
        if key in (name, field.alias):
            return field.annotation
    return section


def _sections_in(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _sections_in(argument)]


def _names_of(section: type[Section]) -> tuple[Any, ...]:
    field = section.model_fields.get("name")
    return get_args(field.annotation) if field else ()
