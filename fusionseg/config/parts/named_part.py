"""The base of sections that name a built-in part or one from outside, both with `args`."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import model_validator

from fusionseg.config.outside import PartError, is_outside
from fusionseg.config.outside_part import OutsidePart
from fusionseg.config.registry import Registry


class NamedPart(OutsidePart):
    """A part by its name: a built-in one of a registry, or one from outside by its dotted path."""

    registry: ClassVar[Registry]
    """The registry of the built-in parts."""

    @model_validator(mode="before")
    @classmethod
    def _is_known(cls, raw: Any) -> Any:
        name = raw.get("name") if isinstance(raw, dict) else None
        if isinstance(name, str) and not is_outside(name):  # a part from outside is imported for its origin
            try:
                cls.registry.find(name)
            except PartError as error:
                raise ValueError(f"name: {error}") from error
        return raw

    @property
    def part(self) -> Any:
        """The class or function that `name` stands for."""
        return self.registry.find(self.name, self.found_in)
