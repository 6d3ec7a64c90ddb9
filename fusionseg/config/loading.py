"""Loading of a configuration from files and the command line."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from fusionseg.config.data.augmentation_presets import PRESET, name_to_preset, names_preset
from fusionseg.config.messages import explain
from fusionseg.config.override import Override, parse_override
from fusionseg.config.renaming import Dropped, carry_over, dropped, is_renamed
from fusionseg.config.schema import RunConfig
from fusionseg.config.section import RECORDED, Section
from fusionseg.config.shipped.lookup import CONFIG, RESOURCES, find_file, shown_path
from fusionseg.config.yaml_location import KeyPath, Locations, dump_yaml, read_yaml
from fusionseg.utils.errors import UserError

AUGMENT = "augment"
AnySection = TypeVar("AnySection", bound=Section)


def load_config(path: str | Path | None, overrides: Sequence[str] = (), lost: list[Dropped] | None = None) -> RunConfig:
    """Read a configuration file, what it extends, and `key.path=value` overrides.

    Args:
        path: a file, or the name of a shipped configuration such as "hippocampus_unet" (see `find_file`); None for no
            file.
        overrides: `key.path=value` texts.
        lost: receives the keys that changes of a section's name have dropped.

    Raises:
        UserError: the configuration is wrong. The message lists all problems, with key path, file and line, and fix.
    """
    return validate(*read_raw(path, overrides, lost))


def read_raw(
    path: str | Path | None, overrides: Sequence[str] = (), lost: list[Dropped] | None = None
) -> tuple[dict[str, Any], Locations]:
    """Read and merge plain values, and the location of each, without validation.

    Args:
        path, overrides: see `load_config`.
        lost: receives the keys that changes of a section's name have dropped.

    Raises:
        UserError: a file is missing or is not valid YAML, or an override is malformed.
    """
    lost = [] if lost is None else lost
    raw, locations = _read_extended(find_file(CONFIG, path), (), lost) if path is not None else ({}, {})
    return lay_over(raw, locations, [parse_override(text, RunConfig) for text in overrides], lost)


def lay_over(
    raw: dict[str, Any], locations: Locations, overrides: Iterable[Override], lost: list[Dropped] | None = None
) -> tuple[dict[str, Any], Locations]:
    """Lay overrides over plain values, all at once, so that the order of model.channels and model.name does not matter.

    A name alone (`model.name=unet`) keeps the other keys of its section that are valid under the new name. A whole
    section (`model={name: unet}`) with another name replaces the section.

    Args:
        raw: the plain values.
        locations: the location of each key of `raw`.
        overrides: the values that replace them.
        lost: receives the keys that changes of a section's name have dropped.

    Returns:
        The merged values, and their locations.
    """
    given: dict[str, Any] = {}
    given_locations: Locations = {}
    whole: set[str] = set()
    for override in map(_preset_in_its_key, overrides):
        whole |= {override.keys[0]} if len(override.keys) == 1 else set()
        nested: dict[str, Any] = {override.keys[-1]: override.value}
        for part in reversed(override.keys[:-1]):
            nested = {part: nested}
        given, _ = _merge(given, {}, nested, {})
        for depth in range(1, len(override.keys)):  # a section keeps its location in the file
            if override.keys[:depth] not in locations:
                given_locations.setdefault(override.keys[:depth], override.location)
        given_locations[override.keys] = override.location
    return _merge_named(raw, locations, given, given_locations, [] if lost is None else lost, whole)


def validate(raw: Mapping[str, Any], locations: Locations | None = None, *, recorded: bool = False) -> RunConfig:
    """Validate plain values as the configuration of a run.

    Args:
        raw: the plain values.
        locations: the file and line of each key, for the messages.
        recorded: a run has recorded the values, perhaps before a check was added.

    Raises:
        UserError: the values are wrong. The message lists all problems.
    """
    return validate_section(RunConfig, raw, locations, recorded=recorded)


def validate_section(
    kind: type[AnySection], raw: Mapping[str, Any], locations: Locations | None = None, *, recorded: bool = False
) -> AnySection:
    """Validate plain values as a section that is a file of its own, such as a sweep.

    Args:
        kind: the section.
        raw: the plain values.
        locations: the file and line of each key, for the messages.
        recorded: see `validate`.

    Raises:
        UserError: the values are wrong. The message lists all problems.
    """
    try:
        return kind.model_validate(dict(raw), context=RECORDED if recorded else None)
    except ValidationError as error:
        raise UserError(explain(error, raw, locations or {}, kind)) from None


def dump_config(config: RunConfig) -> str:
    """Format the resolved configuration as YAML. Loading it gives the same configuration."""
    return dump_yaml(config.to_dict())


def differences(old: Mapping[str, Any], new: Mapping[str, Any], at: str = "") -> list[str]:
    """List `key: old -> new` for each value that differs between two plain configurations.

    Args:
        old, new: the plain values.
        at: path of the keys, with a dot at its end.
    """
    lines: list[str] = []
    for key in [*old, *(key for key in new if key not in old)]:
        name = f"{at}{key}"
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{name}.")
        elif before != after:
            lines.append(f"{name}: {before} -> {after}")
    return lines


def _read_extended(path: Path, chain: tuple[Path, ...], lost: list[Dropped]) -> tuple[dict[str, Any], Locations]:
    """Read a file over the files that it extends.

    Args:
        path: the file.
        chain: the files that are being read because one extends the next, to detect a circle.
        lost: receives the keys that are dropped.
    """
    if path.resolve() in chain:
        loop = " -> ".join(str(entry) for entry in (*chain, path.resolve()))
        raise UserError(f"{shown_path(path)}: extends itself ({loop}); remove one of the links")
    raw, locations = read_yaml(path)
    bases = raw.pop("extends", [])
    location = locations.pop(("extends",), shown_path(path))
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(
            f"extends ({location}): expected a file or a list of files, relative to this file, or names of shipped"
            " configurations"
        )
    merged: dict[str, Any] = {}
    merged_locations: Locations = {}
    for base in bases:
        try:
            file = find_file(CONFIG, base, path.parent, asking=path)
        except UserError as error:
            raise UserError(f"extends ({location}): {error}") from None
        base_raw, base_locations = _read_extended(file, (*chain, path.resolve()), lost)
        merged, merged_locations = _merge_named(merged, merged_locations, base_raw, base_locations, lost)
    # What a shipped file replaces is no news to somebody who uses it.
    own_lost = [] if path.is_relative_to(RESOURCES) else lost
    return _merge_named(merged, merged_locations, raw, locations, own_lost)


def _merge_named(
    under: dict[str, Any],
    under_locations: Locations,
    over: dict[str, Any],
    over_locations: Locations,
    lost: list[Dropped],
    whole: Collection[str] | None = None,
) -> tuple[dict[str, Any], Locations]:
    """Lay one configuration over another. A section whose name changes keeps the keys that are valid under the new
    name, or none.

    Args:
        lost: receives the keys that are dropped.
        whole: the sections of `over` that are given as a whole and start anew; None for all of them.
    """
    under, under_locations = dict(under), dict(under_locations)
    if AUGMENT in over:
        over = {**over, AUGMENT: name_to_preset(over[AUGMENT])}
        if names_preset(over[AUGMENT]):  # a preset is a whole section
            under.pop(AUGMENT, None)
            under_locations = {key: location for key, location in under_locations.items() if key[0] != AUGMENT}
    for section, new in over.items():
        old: Any = under.get(section)
        if not is_renamed(section, old, new):
            continue
        kept = {} if whole is None or section in whole else carry_over(section, old, new)
        if gone := dropped(section, old, new, kept, from_file=whole is None):
            lost.append(gone)
        under[section] = kept
        stay = {(section,), *((section, key) for key in kept)}
        under_locations = {
            key: location for key, location in under_locations.items() if key[0] != section or key[:2] in stay
        }
    return _merge(under, under_locations, over, over_locations)


def _preset_in_its_key(override: Override) -> Override:
    """Convert `augment=nnunet` to `augment.preset=nnunet`, so that `augment.elastic=...` may stand beside it."""
    if override.keys != (AUGMENT,) or not isinstance(override.value, str):
        return override
    return replace(override, keys=(AUGMENT, PRESET))


def _merge(
    under: dict[str, Any],
    under_locations: Locations,
    over: dict[str, Any],
    over_locations: Locations,
    at: KeyPath = (),
) -> tuple[dict[str, Any], Locations]:
    """Lay one mapping over another, key by key. Lists and plain values are replaced as a whole."""
    merged = dict(under)
    locations = dict(under_locations)
    for key, value in over.items():
        old = merged.get(key)
        here = (*at, key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key], locations = _merge(old, locations, value, {}, here)
        else:
            merged[key] = value
            locations = {entry: location for entry, location in locations.items() if entry[: len(here)] != here}
    locations.update(over_locations)
    return merged, locations
