"""The base of every section of a configuration."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    model_serializer,
)

RECORDED = {"recorded": True}
"""Context of the validation of a configuration that a run has recorded, see `is_recorded`."""


def is_recorded(info: ValidationInfo) -> bool:
    """Tell whether a configuration is validated that a run has recorded, and not one that a user has written.

    A check that is newer than the run must not refuse it.
    """
    return info.context == RECORDED


class Section(BaseModel):
    """A part of the configuration. It refuses unknown keys and wrong types, and its values cannot be changed."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class SectionWithOptions(Section):
    """A section whose dump leaves out some keys while they have their default.

    So a new key of the section does not change the dump and the hash of configurations that do not use it.
    """

    left_out: ClassVar[tuple[str, ...]] = ()
    """The names of these keys."""

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialise(self)
        for key in self.left_out:
            if getattr(self, key) == type(self).model_fields[key].default:
                values.pop(key, None)
        return values


# YAML knows lists only; strict mode would refuse a list where a tuple is declared.
Triple = Annotated[tuple[int, int, int], Field(strict=False)]
FloatTriple = Annotated[tuple[float, float, float], Field(strict=False)]
Pair = Annotated[tuple[float, float], Field(strict=False)]
Ints = Annotated[tuple[int, ...], Field(strict=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
