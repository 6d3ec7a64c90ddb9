"""A field of the configuration whose section is chosen by its `name`: the registry says which section that is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, SerializationInfo, ValidationInfo
from pydantic.fields import FieldInfo
from pydantic_core import PydanticKnownError, core_schema

from fusionseg.config.outside import PartError
from fusionseg.config.registry import Registry
from fusionseg.config.section import Section
from fusionseg.utils.errors import suggest


class OpenSection:
    """The annotation of a field whose section is chosen by its `name`.

    Example: `model: Annotated[NetworkSection, OpenSection(networks)]`.

    Args:
        registry: the registry of the section classes.
        default: the name if none is given; None if a name must be given.
        example: a name that the message about a missing name proposes.
    """

    def __init__(self, registry: Registry, default: str | None = None, example: str = "") -> None:
        self.registry = registry
        self.default = default
        self.example = example or default

    def make_default(self) -> Any:
        """The section of the default name, with its defaults."""
        assert self.default is not None
        return self.registry.section(self.default)()

    def section_of(self, raw: Any) -> type[Section] | None:
        """The section class of plain values; None if their name is missing or unknown."""
        name = raw.get("name", self.default) if isinstance(raw, Mapping) else None
        try:
            return self.registry.section(name) if isinstance(name, str) else None
        except PartError:
            return None

    def sections(self) -> list[type[Section]]:
        """All section classes. The class for parts from outside is the last one."""
        return list(dict.fromkeys([*self.registry.built_in().values(), self.registry.outside]))

    def _validate(self, raw: Any, info: ValidationInfo) -> Section:
        if isinstance(raw, Section):
            return raw
        if not isinstance(raw, Mapping):
            raise PydanticKnownError("dict_type")
        name = raw.get("name", self.default)
        if name is None:
            raise ValueError(f"name: is missing; add one, such as name: {self.example}; {self._valid()}")
        if not isinstance(name, str):
            raise ValueError(f"name: expected the name of a {self.registry.kind}, got {name!r}; {self._valid()}")
        try:
            section = self.registry.section(name)
        except PartError as error:
            raise ValueError(f"name: {error}") from error
        if "name" in raw:
            raw = {**raw, "name": self.registry.full_name(name)}
        # Its ValidationError becomes part of the one that is being made.
        made: Section = section.model_validate(raw, context=info.context)
        return made

    def _valid(self) -> str:
        return suggest("", self.registry.names())

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        def plain(section: Section, info: SerializationInfo) -> dict[str, Any]:
            return section.model_dump(
                mode="json" if info.mode == "json" else "python",
                by_alias=bool(info.by_alias),
                exclude_unset=info.exclude_unset,
            )

        return core_schema.with_info_plain_validator_function(
            self._validate, serialization=core_schema.plain_serializer_function_ser_schema(plain, info_arg=True)
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Any section; `fusionseg.config.schema.json_schema` names those that there are."""
        return {"type": "object"}


def open_section_of(field: FieldInfo) -> OpenSection | None:
    """The annotation of a field whose section is chosen by name; None for any other field."""
    return next((entry for entry in field.metadata if isinstance(entry, OpenSection)), None)
