"""The JSON schema for editors, with the short forms of sections that a file may have.

The types of the schema are those of the validated configuration. A file may write a part as its name alone, a preset
in place of the section `augment`, and others; the validators convert these before they check the types.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from fusionseg.config.data.augmentation_presets import PresetName
from fusionseg.config.data.dataset import INHERITED
from fusionseg.config.schema import json_schema

_NAME: dict[str, Any] = {"type": "string"}
_NAMES: dict[str, Any] = {"type": "array", "items": _NAME}
_NULL: dict[str, Any] = {"type": "null"}
_LABELS: dict[str, Any] = {"type": "object", "additionalProperties": {"type": ["integer", "string", "array"]}}


def file_schema() -> dict[str, Any]:
    """The JSON schema of a configuration file as it is written, for editors."""
    schema = json_schema()
    _add(schema["$defs"]["MetricConfig"]["properties"], "name", _NAME)  # a built-in one
    parts = {f"#/$defs/{name}": _name_of(section) for name, section in schema["$defs"].items() if _is_part(section)}
    _add_names(schema, parts)
    _add(schema["properties"], "augment", {"enum": list(get_args(PresetName))})
    data, augment = (schema["$defs"][name]["properties"] for name in ("DataConfig", "AugmentConfig"))
    for key in ("classes", "regions"):  # a list of names, each of which is its own member
        _add(data, key, _NAMES)
        groups = next(form for form in data[key]["anyOf"] if "additionalProperties" in form)
        _add(groups, "additionalProperties", {"type": ["integer", "string"]})  # one member without brackets
    _add(data, "labels", _LABELS)
    _add(data, "intensity", {"type": "object", "additionalProperties": {"$ref": "#/$defs/IntensityConfig"}})
    _add(augment, "flip", _NULL)
    further = schema["$defs"]["SourceConfig"]
    further["required"] = [key for key in further["required"] if key not in INHERITED]
    return schema


def _is_part(section: dict[str, Any]) -> bool:
    """Test that a section is a name with arguments, which may be written as the name alone."""
    properties = section.get("properties", {})
    return "name" in properties and "args" in properties


def _name_of(section: dict[str, Any]) -> dict[str, Any]:
    """The schema of the name of a section, without its documentation."""
    name = section["properties"]["name"]
    return {key: value for key, value in name.items() if key not in ("title", "description", "default")}


def _add_names(schema: Any, parts: Mapping[str, dict[str, Any]]) -> None:
    """Allow the name wherever one of the sections is allowed, except as the network, loss, optimizer or schedule.

    Args:
        schema: any part of the schema; it is changed.
        parts: the reference of each section, and the schema of its name.
    """
    if isinstance(schema, list):
        for index, entry in enumerate(schema):
            if isinstance(entry, dict) and entry.get("$ref") in parts:
                schema[index] = {"anyOf": [entry, parts[entry["$ref"]]]}
            else:
                _add_names(entry, parts)
    elif isinstance(schema, dict):
        for key, entry in schema.items():
            if key in ("model", "loss", "optim", "schedule"):
                continue
            if key == "items" and isinstance(entry, dict) and entry.get("$ref") in parts:
                schema[key] = {"anyOf": [entry, parts[entry["$ref"]]]}
            else:
                _add_names(entry, parts)


def _add(properties: dict[str, Any], key: str, form: dict[str, Any]) -> None:
    """Allow another form of a key."""
    old = properties[key]
    if "anyOf" in old:
        old["anyOf"].append(form)
    else:
        about = {name: old.pop(name) for name in ("default", "description") if name in old}
        properties[key] = {"anyOf": [old, form], **about}
