"""A sweep: one configuration, and the keys that vary between its runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from fusionseg.config import RunConfig, validate
from fusionseg.config.loading import lay_over, read_raw, validate_section
from fusionseg.config.override import Override, parse_override
from fusionseg.config.renaming import Dropped
from fusionseg.config.section import Section
from fusionseg.config.shipped.lookup import CONFIG, SWEEP, find_file, shown_path
from fusionseg.config.yaml_location import read_yaml
from fusionseg.utils.errors import UserError, some_of
from fusionseg.utils.files import user_path

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
JOBS_FOLDER = "jobs"
"""Folder of the logs and of submitit's files, beside the run folders."""
MAX_NAMED = 2
"""Runs that a message names; it counts the others."""
_FIELD = re.compile(r"\{([^{}]+)\}")


def _one_point() -> list[dict[str, Any]]:
    return [{}]


class SweepConfig(Section):
    """The file of a sweep. Each point is run with every combination of the grid."""

    name: Annotated[str, Field(pattern=_NAME)]
    """Name of the folder of the runs, in the `output` of the base configuration."""
    base: str
    """Configuration of all runs: a file relative to this one, or the name of a shipped configuration."""
    fixed: dict[str, Any] = Field(default_factory=dict, alias="set")
    """`key.path: value` for all runs, over the base."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    """`key.path: [values]`: every combination is a run."""
    points: list[dict[str, Any]] = Field(default_factory=_one_point, min_length=1)
    """`key.path: value` for each point; `name`, if given, goes into the run's name."""
    leave_out: list[dict[str, Any]] = Field(default_factory=list)
    """Combinations that are not run. An entry leaves out every combination that has all of its values."""
    run_name: str | None = None
    """Template of a run's name, such as "{model.name}_seed{seed}"; {name} is the name of the point. Null joins the name
    of the point and the values of the grid."""

    @model_validator(mode="after")
    def _keys_are_paths(self) -> SweepConfig:
        problems = []
        for where, keys in (("set", self.fixed), ("grid", self.grid)):
            problems += [
                f"{where}: {key!r} is no key path (expected keys joined by dots, such as model.name)"
                for key in keys
                if not _is_path(key)
            ]
            problems += [
                f"{where}: {key} is set by the sweep itself: remove it" for key in keys if key in ("name", "output")
            ]
        for point in self.points:
            problems += [
                f"points: {key!r} is no key path (expected keys joined by dots, such as model.name)"
                for key in point
                if not _is_path(key)
            ]
            problems += [f"points: {key} is in the grid too: keep one of the two" for key in point if key in self.grid]
            if not isinstance(point.get("name", ""), str):
                problems.append(f"points: name: expected a string, got {point['name']!r}: put it in quotes")
        varied = {*self.grid, *(key for point in self.points for key in point)}
        for pattern in self.leave_out:
            problems += [
                f"leave_out: {key} varies neither in the grid nor in the points, so the entry never matches: remove it"
                for key in pattern
                if key not in varied
            ]
        if problems:
            raise ValueError("\n".join(problems))
        return self


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep."""

    config: RunConfig
    settings: dict[str, Any]
    """The values of the point and of the grid, by key path."""
    dropped: tuple[Dropped, ...] = ()
    """Keys that were dropped because the name of their section changed."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.output) / self.config.name


@dataclass(frozen=True)
class Sweep:
    """All runs of a sweep, resolved."""

    file: Path
    folder: Path
    """The folder that holds the run folders."""
    runs: list[SweepRun]


def load_sweep(file: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep and resolve its runs.

    Args:
        file: a path, or the name of a shipped sweep such as "table2"; see `find_file`.
        overrides: `key.path=value` settings that win in all runs.

    Raises:
        UserError: with all problems of the file and of all runs' configurations.
    """
    path = find_file(SWEEP, file)
    shown = shown_path(path)
    raw, places = read_yaml(path)
    sweep = validate_section(SweepConfig, raw, places)
    try:
        base_file = find_file(CONFIG, sweep.base, path.parent)
    except UserError as error:
        raise UserError(f"base ({places[('base',)]}): {error}") from None
    base, base_places = read_raw(base_file)
    given = [parse_override(text, RunConfig) for text in overrides]
    varied_keys = [("name",), *map(_keys, {*sweep.grid, *(key for point in sweep.points for key in point)})]
    if own := [override.location for override in given if any(_overlap(override.keys, keys) for keys in varied_keys)]:
        raise UserError([f"{place}: varies in {shown}: change it there" for place in own])
    output = _value(lay_over(base, base_places, given)[0], "output", RunConfig.model_fields["output"].default)
    folder = user_path(str(output)).absolute() / sweep.name
    runs: list[SweepRun] = []
    problems: dict[str, list[str]] = {}
    for settings, point in _combinations(sweep):
        varied = [Override(_keys(key), value, f"{shown}, {key}") for key, value in {**sweep.fixed, **settings}.items()]
        lost: list[Dropped] = []
        values, value_places = lay_over(base, base_places, [*varied, *given], lost)
        name = _run_name(sweep, values, settings, point)
        values |= {"name": name, "output": str(folder)}  # absolute, because a job may start in another folder
        try:
            runs.append(SweepRun(validate(values, value_places), settings, tuple(lost)))
        except UserError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(name)
    if problems:
        raise UserError([f"{problem} [{some_of(names, MAX_NAMED)}]" for problem, names in problems.items()])
    if not runs:
        raise UserError(f"{shown}: leave_out leaves no run: remove an entry from it")
    _refuse_equal_names(shown, runs)
    return Sweep(path, folder, runs)


def _combinations(sweep: SweepConfig) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Yield the values of each run by key path, and the name of its point."""
    for point in sweep.points:
        own = {key: value for key, value in point.items() if key != "name"}
        for values in product(*sweep.grid.values()):
            settings = {**own, **dict(zip(sweep.grid, values, strict=True))}
            if not any(_matches(pattern, settings, point) for pattern in sweep.leave_out):
                yield settings, point.get("name")


def _matches(pattern: Mapping[str, Any], settings: Mapping[str, Any], point: Mapping[str, Any]) -> bool:
    known = {**point, **settings}
    return all(key in known and known[key] == value for key, value in pattern.items())


def _run_name(sweep: SweepConfig, values: dict[str, Any], settings: dict[str, Any], point: str | None) -> str:
    """The name of a run, which is the name of its folder: letters, digits, `.`, `_` and `-` only."""
    if sweep.run_name is not None:

        def fill(match: re.Match[str]) -> str:
            found = point if match[1] == "name" else _value(values, match[1], None)
            if found is None:
                raise UserError(
                    f"run_name: {{{match[1]}}} has no value in some runs: use keys that the base or the sweep sets"
                )
            return _plain(found)

        text = _FIELD.sub(fill, sweep.run_name)
    else:
        shown = settings if point is None else {key: settings[key] for key in sweep.grid}
        parts = [_plain(point)] if point is not None else []
        for key, value in shown.items():
            last = key.split(".")[-1]
            parts.append(_plain(value) if isinstance(value, str | dict) else f"{last}{_plain(value)}")
        text = "-".join(parts) or "run"
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip("._-") or "run"


def _plain(value: Any) -> str:
    """Format a value for a run's name: a section by its name, a list as 1x2x3, other values as in YAML."""
    if isinstance(value, dict):
        return str(value.get("name", json.dumps(value)))
    if isinstance(value, list):
        return "x".join(map(_plain, value))
    return value if isinstance(value, str) else json.dumps(value)


def _refuse_equal_names(shown: str, runs: list[SweepRun]) -> None:
    names = [run.config.name for run in runs]
    if taken := sorted({JOBS_FOLDER, "prepared"} & set(names)):
        raise UserError(
            f"{shown}: a run cannot be called {taken[0]}, which is the name of another folder: set run_name"
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"{shown}: several runs are called {some_of(twice, MAX_NAMED)}: put every key that varies into run_name, or"
            " remove repeated values"
        )


def _overlap(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Tell whether one key path is equal to the other, or is its beginning."""
    return all(a == b for a, b in zip(one, other, strict=False))


def _is_path(key: str) -> bool:
    return all(key.split("."))


def _keys(path: str) -> tuple[str, ...]:
    return tuple(path.split("."))


def _value(values: Any, path: str, default: Any) -> Any:
    """The value of a key path in nested mappings."""
    for key in path.split("."):
        if not isinstance(values, Mapping) or key not in values:
            return default
        values = values[key]
    return values
