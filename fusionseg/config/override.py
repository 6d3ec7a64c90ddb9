"""`key.path=value` on the command line. A string is taken as typed; all other values are read as YAML."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from yaml.reader import Reader

from fusionseg.config.parts.open_section import open_section_of
from fusionseg.config.section import Section
from fusionseg.config.yaml_location import parse_value
from fusionseg.utils.errors import UserError


@dataclass(frozen=True)
class Override:
    """A value for one key, which overrides that of the files."""

    keys: tuple[str, ...]
    value: Any
    location: str


def parse_override(text: str, kind: type[Section] | None = None) -> Override:
    """Parse an override from the command line, `key.path=value`.

    If the key holds a string (a path, a name), the value is taken as typed: ` #`, `: `, `[x]`, `1e3` or `yes` are part
    of it. `null` and an empty value stand for no value. Quotes around the whole value are removed.

    Args:
        text: the override.
        kind: the section class that the keys belong to. It tells which keys hold strings. Without it, all
            values are read as YAML.

    Raises:
        UserError: the text has another form, or the value is not valid YAML.
    """
    key, separator, value = text.partition("=")
    keys = tuple(key.split("."))
    if not separator or not all(keys):
        raise UserError(f"{text!r} on the command line: expected key.path=value")
    try:
        if kind is not None and value and holds_text(kind, keys):
            parsed: Any = _typed_text(value)
        else:
            parsed, rest = parse_value(value)
            if isinstance(parsed, str) and parsed != value and value[0] not in "'\"":
                parsed = value
            elif rest:
                raise UserError(f"{text!r} on the command line: {rest!r} is not part of the value; remove it")
    except yaml.YAMLError:
        raise UserError(f"{text!r} on the command line: the value is not valid YAML; quote it") from None
    return Override(keys, parsed, f"command line: {text}")


def holds_text(kind: type[Section], keys: Sequence[str]) -> bool:
    """Tell whether a key of a section holds a string and nothing else but null.

    Args:
        kind: the section class.
        keys: the path of the key within it.
    """
    found: list[Any] = [kind]
    for key in keys:
        found = [inner for outer in found for inner in _fields(outer, key)]
    wanted = [member for member in found if member is not type(None)]
    return bool(wanted) and all(
        member is str or (get_origin(member) is Literal and all(isinstance(value, str) for value in get_args(member)))
        for member in wanted
    )


def _fields(outer: Any, key: str) -> Iterator[Any]:
    """Yield the types that a key of a section may have; nothing if the outer type is not a section."""
    if isinstance(outer, type) and issubclass(outer, Section):
        for name, field in outer.model_fields.items():
            if key == (field.alias or name):
                open_section = open_section_of(field)
                yield from _members(field.annotation) if open_section is None else open_section.sections()


def _members(annotation: Any) -> Iterator[Any]:
    """Yield the types of a union, or the type itself."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    else:
        yield annotation


def _typed_text(value: str) -> str | None:
    """A string as typed, without the quotes around it; None for null.

    Raises:
        YAMLError: the text begins with a quote and is not quoted as a whole, or holds characters that YAML forbids.
    """
    if value == "null":
        return None
    if Reader.NON_PRINTABLE.search(value):
        raise yaml.YAMLError
    if value[0] in "'\"":
        parsed, rest = parse_value(value)
        if not isinstance(parsed, str) or rest:
            raise yaml.YAMLError
        return parsed
    return value
