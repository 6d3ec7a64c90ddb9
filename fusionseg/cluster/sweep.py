"""A sweep: one configuration, and the keys that vary between its runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from fusionseg.cluster.profile import ClusterConfig
from fusionseg.cluster.search.search_file import SearchConfig, check_rungs
from fusionseg.cluster.sweep_file import (
    PROFILE,
    SEARCHED,
    SweepConfig,
    SweepTable,
    of_runs,
    resources_of,
    varied_resources,
)
from fusionseg.config import RunConfig, validate
from fusionseg.config.loading import lay_over, read_raw, validate_section
from fusionseg.config.override import Override, parse_override
from fusionseg.config.renaming import Dropped
from fusionseg.config.shipped.lookup import CLUSTER, CONFIG, SWEEP, find_file, shown_path
from fusionseg.config.yaml_location import Locations, read_yaml
from fusionseg.runs.records import has_finished, last_end
from fusionseg.utils.errors import UserError, some_of
from fusionseg.utils.files import user_path

JOBS_FOLDER = "jobs"
"""Folder of the logs and of submitit's files, beside the run folders."""
MAX_NAMED = 2
"""Runs that a message names; it counts the others."""
_FIELD = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep."""

    config: RunConfig
    settings: dict[str, Any]
    """The values of the point and of the grid, by key path."""
    varied: dict[str, Any] = field(default_factory=dict)
    """The values of the grid alone."""
    point: str | None = None
    """The name of the point."""
    dropped: tuple[Dropped, ...] = ()
    """Keys that were dropped because the name of their section changed."""
    resources: tuple[Override, ...] = ()
    """The keys of the cluster profile that the sweep sets for this run; without keys: the profile itself."""
    cluster: ClusterConfig | None = None
    """The profile of this run, if it has resources of its own; see `with_resources`."""

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
    table: SweepTable = field(default_factory=SweepTable)
    """The table of `fusionseg table`."""
    varied_resources: frozenset[tuple[str, ...]] = frozenset()
    """Keys of the cluster profile that points or grid set."""
    search: SearchConfig | None = None
    """The search that chooses among the runs; None trains all of them to their end."""

    def ensembles(self) -> list[list[SweepRun]]:
        """The runs of each ensemble of the table: runs that differ in `table.ensemble_over` alone."""
        over = self.table.ensemble_over
        if over is None:
            return []
        groups: dict[str, list[SweepRun]] = {}
        for run in self.runs:
            same = run.varied if over == "name" else {**run.settings, "name": run.point}
            key = json.dumps({key: value for key, value in same.items() if key != over}, default=str)
            groups.setdefault(key, []).append(run)
        return list(groups.values())

    def unfinished(self) -> list[SweepRun]:
        """The runs that have not reached their end."""
        return [run for run in self.runs if (end := last_end(run.folder)) is None or not has_finished(end["status"])]


def sweep_order(file: str | Path) -> list[Path]:
    """List a sweep's file after the files of the sweeps that come before it (`after`), and those that come before them.

    Args:
        file: a path, or the name of a shipped sweep.

    Raises:
        UserError: a file does not exist or is not valid, or sweeps come before each other.
    """
    ordered: list[Path] = []

    def visit(path: Path, on_the_way: tuple[Path, ...]) -> None:
        if path in on_the_way:
            names = " after ".join(one.stem for one in (*on_the_way, path))
            raise UserError(f"{shown_path(path)}: after: {names}: sweeps cannot come before each other; remove one")
        for earlier in _read(path)[0].after:
            visit(find_file(SWEEP, earlier, path.parent), (*on_the_way, path))
        if path not in ordered:
            ordered.append(path)

    visit(find_file(SWEEP, file), ())
    return ordered


def _read(path: Path) -> tuple[SweepConfig, Locations]:
    """Read the file of a sweep, laid over the one that it extends, and the place of each key."""
    raw, places = _read_raw(path)
    return validate_section(SweepConfig, raw, places), places


def _read_raw(path: Path, below: tuple[Path, ...] = ()) -> tuple[dict[str, Any], Locations]:
    raw, places = read_yaml(path)
    extended = raw.pop("extends", None)
    if extended is None:
        return raw, places
    place = f"extends ({places[('extends',)]})"
    if not isinstance(extended, str):
        raise UserError(f"{place}: expected a file or the name of a shipped sweep, got {extended!r}")
    try:
        file = find_file(SWEEP, extended, path.parent, asking=path)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    if file in (path, *below):
        raise UserError(f"{place}: {shown_path(file)} extends itself; remove the key from one of the files")
    other, other_places = _read_raw(file, (path, *below))
    kept = {keys: text for keys, text in other_places.items() if not keys or keys[0] not in raw}
    return {**_with_own_paths(other, file), **raw}, {**kept, **places}


def _with_own_paths(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """The keys of an extended file. Its files are found from its own folder; what is not found is reported later."""
    found = dict(raw)
    with suppress(UserError):
        if isinstance(raw.get("base"), str):
            found["base"] = str(find_file(CONFIG, raw["base"], path.parent))
        if isinstance(raw.get("after"), list):
            found["after"] = [str(find_file(SWEEP, str(name), path.parent)) for name in raw["after"]]
        points = raw["points"] if isinstance(raw.get("points"), list) else []
        for settings in (raw.get("set"), *points):
            if isinstance(settings, dict) and isinstance(settings.get(PROFILE), str):
                settings[PROFILE] = str(find_file(CLUSTER, settings[PROFILE], path.parent))
        grid = raw.get("grid")
        if isinstance(grid, dict) and isinstance(grid.get(PROFILE), list):
            grid[PROFILE] = [
                str(find_file(CLUSTER, value, path.parent)) if isinstance(value, str) else value
                for value in grid[PROFILE]
            ]
    return found


def load_sweep(
    file: str | Path, overrides: Sequence[str] = (), points: Sequence[Mapping[str, Any]] | None = None
) -> Sweep:
    """Read a sweep and resolve its runs.

    Args:
        file: a path, or the name of a shipped sweep such as "table2"; see `find_file`.
        overrides: `key.path=value` settings that win in all runs.
        points: points in place of those of the file, such as the next trials of a search.

    Raises:
        UserError: with all problems of the file and of all runs' configurations.
    """
    path = find_file(SWEEP, file)
    shown = shown_path(path)
    sweep, places = _read(path)
    if points is not None:
        sweep.points[:] = map(dict, points)
    try:
        base_file = find_file(CONFIG, sweep.base, path.parent)
    except UserError as error:
        raise UserError(f"base ({places[('base',)]}): {error}") from None
    given = [parse_override(text, RunConfig) for text in overrides]
    varied_keys = [("name",), *map(_keys, {*sweep.grid, *(key for point in sweep.points for key in point)})]
    if sweep.search is not None:
        varied_keys += map(_keys, SEARCHED)
    if own := [override.location for override in given if any(overlap(override.keys, keys) for keys in varied_keys)]:
        raise UserError([f"{place}: varies in {shown}: change it there" for place in own])
    base = _Base(*read_raw(base_file), given, shown)
    output = _value(base.with_settings({})[0], "output", RunConfig.model_fields["output"].default)
    folder = user_path(str(output)).absolute() / sweep.name
    runs: list[SweepRun] = []
    problems: dict[str, list[str]] = {}
    for combined, index in _combinations(sweep):
        settings, point = of_runs(combined), sweep.points[index].get("name")
        fixed = of_runs(sweep.fixed) | _filled_templates(sweep, base, settings, point, folder.parent)
        values, value_places, lost = base.with_settings(fixed | settings)
        name = _run_name(sweep, values, combined, point)
        values |= {"name": name, "output": str(folder)}  # absolute, because a job may start in another folder
        try:
            grid = {key: combined[key] for key in sweep.grid}
            resources = resources_of(sweep, places, index, grid)
            runs.append(SweepRun(validate(values, value_places), combined, grid, point, tuple(lost), resources))
        except UserError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(name)
    if problems:
        raise UserError([f"{problem} [{some_of(names, MAX_NAMED)}]" for problem, names in problems.items()])
    if not runs:
        raise UserError(f"{shown}: leave_out leaves no run: remove an entry from it")
    _refuse_equal_names(shown, runs)
    if sweep.search is not None:
        check_rungs(shown, sweep.search, [run.config for run in runs])
    return Sweep(path, folder, runs, sweep.table, varied_resources(sweep), sweep.search)


@dataclass(frozen=True)
class _Base:
    """The base configuration of a sweep, and the settings of the command line, which win."""

    values: dict[str, Any]
    places: Locations
    given: list[Override]
    shown: str
    """The sweep's file, for messages."""

    def with_settings(self, settings: Mapping[str, Any]) -> tuple[dict[str, Any], Locations, list[Dropped]]:
        """Lay settings of the sweep and those of the command line over the base.

        Args:
            settings: values by key path.

        Returns:
            The values, their places, and the keys that were dropped because the name of their section changed.
        """
        varied = [Override(_keys(key), value, f"{self.shown}, {key}") for key, value in settings.items()]
        lost: list[Dropped] = []
        return *lay_over(self.values, self.places, [*varied, *self.given], lost), lost


def _filled_templates(
    sweep: SweepConfig, base: _Base, settings: Mapping[str, Any], point: str | None, output: Path
) -> dict[str, str]:
    """The values of the sweep's templates in one run, by key path, except for keys that the run sets itself."""
    templates = {key: text for key, text in sweep.templates.items() if key not in settings}
    if not templates:
        return {}
    values = base.with_settings({**of_runs(sweep.fixed), **settings})[0] | {"output": str(output)}
    return {key: _filled(text, values, point, f"templates: {key}") for key, text in templates.items()}


def _combinations(sweep: SweepConfig) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the values of each run by key path, and the index of its point."""
    for index, point in enumerate(sweep.points):
        own = {key: value for key, value in point.items() if key != "name"}
        for values in product(*sweep.grid.values()):
            settings = {**own, **dict(zip(sweep.grid, values, strict=True))}
            if not any(_matches(pattern, settings, point) for pattern in sweep.leave_out):
                yield settings, index


def _matches(pattern: Mapping[str, Any], settings: Mapping[str, Any], point: Mapping[str, Any]) -> bool:
    known = {**point, **settings}
    return all(key in known and known[key] == value for key, value in pattern.items())


def _run_name(sweep: SweepConfig, values: dict[str, Any], settings: dict[str, Any], point: str | None) -> str:
    """The name of a run, which is the name of its folder: letters, digits, `.`, `_` and `-` only."""
    if sweep.run_name is not None:
        text = _filled(sweep.run_name, values, point, "run_name")
    else:
        grid = {key: settings[key] for key in sweep.grid}
        shown = grid if point is not None else of_runs(settings) | grid
        parts = [_plain(point)] if point is not None else []
        for key, value in shown.items():
            last = key.split(".")[-1]
            parts.append(_plain(value) if isinstance(value, str | dict) else f"{last}{_plain(value)}")
        text = "-".join(parts) or "run"
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip("._-") or "run"


def _filled(template: str, values: Mapping[str, Any], point: str | None, where: str) -> str:
    """Replace each {key.path} of a template by its value, and {name} by the name of the point.

    Raises:
        UserError: a key has no value.
    """

    def fill(match: re.Match[str]) -> str:
        found = point if match[1] == "name" else _value(values, match[1], None)
        if found is None:
            raise UserError(
                f"{where}: {{{match[1]}}} has no value in some runs: use keys that the base or the sweep sets"
            )
        return _plain(found)

    return _FIELD.sub(fill, template)


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


def overlap(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Tell whether one key path is equal to the other, or is its beginning."""
    return all(a == b for a, b in zip(one, other, strict=False))


def _keys(path: str) -> tuple[str, ...]:
    return tuple(path.split("."))


def _value(values: Any, path: str, default: Any) -> Any:
    """The value of a key path in nested mappings."""
    for key in path.split("."):
        if not isinstance(values, Mapping) or key not in values:
            return default
        values = values[key]
    return values
