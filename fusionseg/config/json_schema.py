"""The JSON schema of a configuration file, for editors."""

from __future__ import annotations

from typing import Any

from fusionseg.config.schema import RunConfig


def json_schema() -> dict[str, Any]:
    """What a configuration file may hold: the run's schema, and `extends`, by which nothing is required of one file."""
    schema = RunConfig.model_json_schema(by_alias=True)
    schema.pop("required", None)
    names = {"type": "string"}
    schema["properties"]["extends"] = {
        "anyOf": [names, {"type": "array", "items": names}],
        "description": "A file, or a list of files, that this one is laid over: relative to this file,"
        " or the name of a shipped configuration.",
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
