"""Reference of all configuration keys as Markdown tables, generated from the JSON schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fusionseg.config.schema import json_schema


@dataclass(frozen=True)
class KeyReference:
    """One key of a configuration file."""

    path: str
    """Key path, such as train.steps; `[]` follows a key that holds a list of sections."""
    type: str
    default: str
    """Default value as YAML; empty if a value must be given."""
    meaning: str


@dataclass(frozen=True)
class SectionReference:
    """The keys of a section. A section that `name` chooses, such as `model`, has one entry for each section class."""

    title: str
    meaning: str
    keys: list[KeyReference]


def key_reference() -> list[SectionReference]:
    """List all sections and keys of a configuration, in the order of the schema."""
    schema = json_schema()
    definitions: dict[str, dict[str, Any]] = schema["$defs"]
    top_level: list[KeyReference] = []
    sections: list[SectionReference] = []
    for key, value in schema["properties"].items():
        choices = _sections_of(value, definitions)
        if not choices:
            top_level.append(_key(key, value))
        for section in choices:
            title = key if len(choices) == 1 else f"{key}: {_names(section) or 'dotted path'}"
            meaning = section.get("description") or value.get("description", "")
            sections.append(SectionReference(title, _one_line(meaning), list(_keys(key, section, definitions))))
    return [SectionReference("Top level", "Keys outside a section.", top_level), *sections]


def reference_tables() -> str:
    """Format the reference as Markdown: a heading, a sentence and a table for each section."""
    parts = []
    for section in key_reference():
        rows = [f"| `{key.path}` | {key.type} | {key.default} | {key.meaning} |" for key in section.keys]
        table = "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])
        parts += [f"### {section.title}", *([section.meaning] if section.meaning else []), table]
    return "\n\n".join(parts)


def _sections_of(value: dict[str, Any], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """Sections that a key or the items of its list may hold; empty for a plain value."""
    options = [value, *value.get("anyOf", []), *value.get("oneOf", []), value.get("items") or {}]
    found = [definitions[option["$ref"].rpartition("/")[2]] for option in options if "$ref" in option]
    return [definition for definition in found if "properties" in definition]


def _names(section: dict[str, Any]) -> str:
    """Names that select a section, such as "adamw, adam, sgd, novograd"; empty if its name is a dotted path."""
    name = section["properties"].get("name", {})
    return ", ".join(name.get("enum", [name["const"]] if "const" in name else []))


def _keys(prefix: str, section: dict[str, Any], definitions: dict[str, Any]) -> Iterator[KeyReference]:
    for key, value in section["properties"].items():
        yield _key(f"{prefix}.{key}", value)
        marker = "[]" if value.get("type") == "array" else ""
        for nested in _sections_of(value, definitions):
            yield from _keys(f"{prefix}.{key}{marker}", nested, definitions)


def _key(path: str, value: dict[str, Any]) -> KeyReference:
    default = f"`{json.dumps(value['default'])}`" if "default" in value else ""
    if isinstance(value.get("default"), dict):
        default = ""  # the keys of the section below have their own defaults
    return KeyReference(path, _type(value).replace("|", "\\|"), default, _one_line(value.get("description", "")))


def _type(value: dict[str, Any]) -> str:
    """Type of a value in words, with its limits."""
    if options := value.get("anyOf") or value.get("oneOf"):
        return " or ".join(dict.fromkeys(_type(option) for option in options))
    if "$ref" in value:
        return "section"
    if "enum" in value or "const" in value:
        return ", ".join(f"`{choice}`" for choice in value.get("enum", [value.get("const")]))
    if value.get("type") == "array":
        items: list[dict[str, Any]] = value.get("prefixItems") or [value.get("items") or {}]
        kinds = " or ".join(dict.fromkeys(_type(item) for item in items))
        return f"list of {len(items)} x {kinds}" if "prefixItems" in value else f"list of {kinds}"
    words = {"string": "text", "number": "number", "integer": "integer", "boolean": "true or false", "null": "null"}
    named = words.get(value.get("type", ""), "mapping" if value.get("type") == "object" else "any")
    limits = [f"{sign} {value[key]}" for key, sign in _LIMITS.items() if key in value]
    return " ".join([named, *limits])


_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
