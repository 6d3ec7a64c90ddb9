"""The file of a sweep: its keys, and the checks that need no configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fusionseg.cluster.search.search_file import SearchConfig
from fusionseg.config.override import Override
from fusionseg.config.section import Section
from fusionseg.config.yaml_location import KeyPath, Locations

PROFILE = "cluster"
"""The first part of the keys that belong to the cluster profile; alone it is the name of another profile."""
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


SEARCHED = ("train.steps", "stop.at")
"""Keys that a search sets."""


def _one_point() -> list[dict[str, Any]]:
    return [{}]


class SweepTable(Section):
    """The table that `fusionseg table` makes of a sweep."""

    rows: Literal["settings", "name"] = "settings"
    """Names of the rows: the settings in which the rows differ, or the names of the runs without seed and
    fold."""
    metrics: list[str] = Field(default_factory=list)
    """Columns, such as parameters, dice (files), hd95_mm (files); none listed shows all."""
    against: str | None = None
    """A name of runs without seed and fold, such as scratch: also the differences of the other rows from it, seed by
    seed and fold by fold, with an interval."""
    ensemble_over: str | None = None
    """Also a row for the ensemble of the runs that differ in this key of the grid alone; `name`: in the point alone."""
    postprocess: bool = False
    """Also a row for the masks of each configuration with post-processing, chosen on its validation cases; each fold is
    scored by a choice on the other folds."""
    statistics: bool = False
    """Also the files of `fusionseg statistics`, with paired tests if `against` is set, and of `fusionseg best`."""


class SweepConfig(Section):
    """The file of a sweep. Each point is run with every combination of the grid.

    `extends` names another sweep, whose keys this file replaces one by one.
    """

    name: Annotated[str, Field(pattern=_NAME)]
    """Name of the folder of the runs, in the `output` of the base configuration."""
    base: str
    """Configuration of all runs: a file relative to this one, or the name of a shipped configuration."""
    fixed: dict[str, Any] = Field(default_factory=dict, alias="set")
    """`key.path: value` for all runs, over the base."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    """`key.path: [values]`: every combination is a run."""
    points: list[dict[str, Any]] = Field(default_factory=_one_point, min_length=1)
    """`key.path: value` for each point; `name`, if given, goes into the run's name. Keys that begin with `cluster.` are
    of the cluster profile, here as in `set` and `grid`; `cluster: NAME` is another profile."""
    leave_out: list[dict[str, Any]] = Field(default_factory=list)
    """Combinations that are not run. An entry leaves out every combination that has all of its values."""
    templates: dict[str, str] = Field(default_factory=dict)
    """`key.path: text` for all runs, filled as `run_name`; {output} is the folder of all sweeps. Points and grid win.
    So each run can start from a run of another sweep: `init_from: "{output}/pretraining/{name}-seed{seed}"`."""
    after: list[str] = Field(default_factory=list)
    """Sweeps that `fusionseg table` runs before this one: files relative to this one, or names of shipped sweeps."""
    table: SweepTable = Field(default_factory=SweepTable)
    """The table of `fusionseg table`."""
    search: SearchConfig | None = None
    """Train all runs for some steps, and go on with the best alone (successive halving)."""
    run_name: str | None = None
    """Template of a run's name, such as "{model.name}_seed{seed}"; {name} is the name of the point. Null joins the name
    of the point and the values of the grid."""

    @model_validator(mode="after")
    def _drawn_points(self) -> SweepConfig:
        """Take the points that the search draws, and the steps of its last rung."""
        if self.search is None:
            return self
        if self.search.space and self.points != _one_point():
            raise ValueError("points: search.space draws the points; remove one of the two")
        varied = {*self.fixed, *self.templates, *self.grid, *(key for point in self.points for key in point)}
        if self.search.sampler == "tpe" and self.grid:
            raise ValueError(
                "grid: with search.sampler: tpe each trial is one run; move its keys to search.space or set"
            )
        if "name" in self.search.space:
            raise ValueError("search.space: name is set by the search; remove it")
        if own := sorted((varied | self.search.space.keys()) & {*SEARCHED, "train", "stop"}):
            raise ValueError(f"{', '.join(own)}: is set by the search (search.max_steps); remove it")
        self.fixed["train.steps"] = self.search.max_steps
        if self.search.space:
            self.points[:] = self.search.points()
        return self

    @model_validator(mode="after")
    def _keys_are_paths(self) -> SweepConfig:
        problems = []
        for where, keys in (("set", self.fixed), ("templates", self.templates), ("grid", self.grid)):
            problems += [
                f"{where}: {key!r} is no key path (expected keys joined by dots, such as model.name)"
                for key in keys
                if not _is_path(key)
            ]
            problems += [
                f"{where}: {key} is set by the sweep itself: remove it" for key in keys if key in ("name", "output")
            ]
        varied_profiles = [{PROFILE: value} for value in self.grid.get(PROFILE, [])]
        for settings in (self.fixed, *varied_profiles, *self.points):
            if not isinstance(settings.get(PROFILE, ""), str | dict):
                problems.append(f"{PROFILE}: expected the name or the file of a profile, got {settings[PROFILE]!r}")
        for point in self.points:
            problems += [
                f"points: {key!r} is no key path (expected keys joined by dots, such as model.name)"
                for key in point
                if not _is_path(key)
            ]
            problems += [f"points: {key} is in the grid too: keep one of the two" for key in point if key in self.grid]
            if not isinstance(point.get("name", ""), str):
                problems.append(f"points: name: expected a string, got {point['name']!r}: put it in quotes")
        over = self.table.ensemble_over
        if over is not None and over not in self.grid and not (over == "name" and len(self.points) > 1):
            problems.append(
                f"table: ensemble_over: {over!r} does not vary (expected name, or a key of the grid:"
                f" {', '.join(self.grid) or 'it is empty'})"
            )
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


def _is_path(key: str) -> bool:
    return all(key.split("."))


def of_runs(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that belong to the configuration of a run, without those of the cluster profile."""
    return {key: value for key, value in settings.items() if key.partition(".")[0] != PROFILE}


def resources_of(sweep: SweepConfig, places: Locations, index: int, grid: Mapping[str, Any]) -> tuple[Override, ...]:
    """The keys of the cluster profile that a sweep sets for a run, those that win last.

    Args:
        sweep: the sweep.
        places: the file and line of each key of the sweep.
        index: of the run's point.
        grid: the run's values of the grid.
    """
    parts = ((("set",), sweep.fixed), (("points", index), sweep.points[index]), (("grid",), grid))
    return tuple(override for at, settings in parts for override in _of_profile(settings, places, at))


def varied_resources(sweep: SweepConfig) -> frozenset[tuple[str, ...]]:
    """The keys of the cluster profile that points or grid set."""
    varied = [*sweep.points, *({key: value} for key, values in sweep.grid.items() for value in values)]
    return frozenset(override.keys for settings in varied for override in _of_profile(settings, {}, ()))


def _of_profile(settings: Mapping[str, Any], places: Locations, at: KeyPath) -> Iterator[Override]:
    """Yield the settings of the cluster profile; one without keys is the profile itself."""
    for key, value in settings.items():
        if key.partition(".")[0] == PROFILE:
            is_section = key == PROFILE and isinstance(value, dict)
            inner = {f"{key}.{name}": part for name, part in value.items()} if is_section else {key: value}
            for path, part in inner.items():
                yield Override(tuple(path.split("."))[1:], part, f"{places.get((*at, key), 'in the sweep')}, {path}")
