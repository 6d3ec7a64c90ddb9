"""Section of a part from outside: its dotted path, its arguments, and the origin that a run records."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from fusionseg.config.outside import OutsideSource, PartError, import_part, is_outside, source_of
from fusionseg.config.section import Section
from fusionseg.utils.errors import suggest


class OutsidePart(Section):
    """A part of the user's own, or of an installed library."""

    set_by_name: ClassVar[tuple[str, ...]] = ("version", "found_in")
    """Keys whose values belong to the name. A change of the name does not keep them."""
    supplied: ClassVar[tuple[str, ...]] = ()
    """Arguments that fusionseg supplies by name, if the part takes them."""
    defaults: ClassVar[tuple[str, ...]] = ()
    """Arguments that fusionseg supplies by name if the part takes them and `args` does not have them."""

    name: Annotated[str, Field(json_schema_extra={"pattern": "^[^:]+:[^:]+$"})]
    """Dotted path of a class or a function: package.module:Attribute, or folder/file.py:Attribute."""
    args: Annotated[dict[str, Any], Field(default_factory=dict)]
    """Keyword arguments of the class or function."""
    version: str | None = None
    """Written by fusionseg: the version of the package, or the hash of the source file."""
    found_in: str | None = None
    """Written by fusionseg: the folder from which the module was imported; null for an installed package."""

    @model_validator(mode="before")
    @classmethod
    def _record_source(cls, raw: Any) -> Any:
        """Import the part, and record its origin if the configuration does not have it yet."""
        if not isinstance(raw, dict) or not is_outside(raw.get("name")):
            return raw
        found_in = raw.get("found_in") if isinstance(raw.get("found_in"), str) else None
        try:
            source = source_of(raw["name"], found_in)
        except PartError as error:
            raise ValueError(f"name: {error}") from error
        given = {key: raw[key] for key in ("version", "found_in") if raw.get(key) is not None}
        if "found_in" in given and source.found_in is not None and source.found_in != found_in:
            given.pop("found_in")  # the folder has moved, and the module was found elsewhere
        return {**raw, "version": source.version, "found_in": source.found_in, **given}

    @model_validator(mode="after")
    def _arguments_fit(self) -> OutsidePart:
        supplied = (*self.supplied, *(key for key in self.defaults if key not in self.args))
        if problems := argument_problems(self.part, self.args, supplied, positional=self.positional_arguments()):
            raise ValueError("\n".join(f"args{problem}" for problem in problems))
        return self

    def positional_arguments(self) -> int:
        """Number of arguments that fusionseg passes by position when it calls the part with `args`."""
        return 0

    @property
    def part(self) -> Any:
        """The class or function that `name` stands for."""
        return import_part(self.name, self.found_in)

    @property
    def source(self) -> OutsideSource:
        """The origin of the part as it is now; `version` may be that of an earlier start of the run."""
        return source_of(self.name, self.found_in)


def argument_problems(
    part: Callable[..., Any], args: Mapping[str, Any], supplied: Collection[str] = (), *, positional: int = 0
) -> list[str]:
    """List the arguments that a class or function does not take, and the required ones that are missing.

    Args:
        part: the class or function.
        args: keyword arguments of the user.
        supplied: arguments that fusionseg passes by name.
        positional: number of arguments that fusionseg passes by position.

    Returns:
        Messages that begin with ".name: " or ": ". The caller puts the key of the arguments in front.
    """
    try:
        parameters = list(inspect.signature(part).parameters.values())
    except (ValueError, TypeError):  # some functions that are written in C have no signature
        return []
    name = getattr(part, "__qualname__", str(part))
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first = [parameter.name for parameter in parameters if parameter.kind in by_position][:positional]
    variadic = [parameter.kind for parameter in parameters]
    named = {
        parameter.name: parameter
        for parameter in parameters
        if parameter.name not in first
        and parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
    problems = []
    if len(first) < positional and inspect.Parameter.VAR_POSITIONAL not in variadic:
        problems.append(f": {name} takes {len(first)} arguments by position (expected at least {positional})")
    for key in args:
        if key in supplied:
            problems.append(f".{key}: is supplied by fusionseg; remove it")
        elif key not in named and inspect.Parameter.VAR_KEYWORD not in variadic:
            valid = [each for each in named if each not in supplied]
            problems.append(
                f".{key}: is no argument of {name}; {suggest(key, valid)}"
                if valid
                else f".{key}: is no argument of {name}, which takes none; remove it"
            )
    missing = [
        key
        for key, parameter in named.items()
        if parameter.default is inspect.Parameter.empty and key not in args and key not in supplied
    ]
    if missing:
        problems.append(f": {name} needs {', '.join(missing)}; add {'it' if len(missing) == 1 else 'them'}")
    return problems


def name_to_section(raw: Any) -> Any:
    """Convert a plain name to the section of a part without arguments; any other value stays as it is."""
    return {"name": raw} if isinstance(raw, str) else raw


def takes(part: Callable[..., Any], argument: str) -> bool:
    """Tell whether a class or function has a parameter of this name.

    Args:
        part: the class or function.
        argument: the name of the parameter.
    """
    try:
        return argument in inspect.signature(part).parameters
    except (ValueError, TypeError):
        return False


def outside_parts(section: Any, at: str = "") -> Iterator[tuple[str, OutsidePart]]:
    """Yield the parts from outside within a section, each with its key, such as "model" or "data.transforms.0".

    Args:
        section: a section, or a list of them.
        at: the key of the section.
    """
    if isinstance(section, OutsidePart) and is_outside(section.name):
        yield at, section
    elif isinstance(section, Section):
        for name, field in type(section).model_fields.items():
            key = field.alias or name
            yield from outside_parts(getattr(section, name), f"{at}.{key}" if at else key)
    elif isinstance(section, list | tuple):
        for index, entry in enumerate(section):
            yield from outside_parts(entry, f"{at}.{index}")


def source_changes(before: Mapping[str, Any], config: Section, sections: Collection[str] | None = None) -> list[str]:
    """Warn about parts from outside whose source is not the one that a run has recorded.

    Args:
        before: the plain configuration that the run has recorded.
        config: the configuration, which names the same parts.
        sections: the sections whose parts are compared; None for all of them.

    Returns:
        One message for each changed part.
    """
    warnings = []
    for key, part in outside_parts(config):
        if sections is not None and key.split(".")[0] not in sections:
            continue
        recorded: Any = before
        for name in key.split("."):
            recorded = _entry(recorded, name)
        was, now = _entry(recorded, "version"), part.source.version
        if was is not None and was != now:
            warnings.append(
                f"{key}: {part.name} has changed since the run recorded it ({was} then, {now} now): results may differ"
            )
    return warnings


def without_sources(plain: Any, keys: Collection[str] = ("version", "found_in")) -> Any:
    """Remove what a run has recorded about parts from outside.

    Args:
        plain: a plain configuration.
        keys: the keys to remove from each part.
    """
    if isinstance(plain, Mapping):
        left_out = keys if is_outside(plain.get("name")) else ()
        return {key: without_sources(value, keys) for key, value in plain.items() if key not in left_out}
    return [without_sources(entry, keys) for entry in plain] if isinstance(plain, list | tuple) else plain


def _entry(plain: Any, key: str) -> Any:
    """An entry of plain values; None if there is none."""
    if isinstance(plain, list | tuple):
        return plain[int(key)] if key.isdigit() and int(key) < len(plain) else None
    return plain.get(key) if isinstance(plain, Mapping) else None
