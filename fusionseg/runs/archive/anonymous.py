"""Configurations and splits as an archive holds them: without names of patients, folders, accounts and servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fusionseg.config.data.splits import anonymous_fold
from fusionseg.config.outside_part import without_sources
from fusionseg.runs.cases.split import Split, SplitCase
from fusionseg.runs.json_files import JsonObject


def anonymous_config(plain: Mapping[str, Any]) -> JsonObject:
    """The configuration of a run without what only its machine and its data have, and no prediction needs.

    The section `log` has servers, accounts and passwords of trackers, `data.annotated` names of cases, and `data.fold`
    may be the name of a patient.

    Args:
        plain: the plain configuration. It is not changed.
    """
    config = {key: value for key, value in plain.items() if key != "log"}
    if isinstance(data := config.get("data"), Mapping):
        config["data"] = {key: value for key, value in data.items() if key != "annotated"}
        if "fold" in data:
            config["data"]["fold"] = anonymous_fold(data["fold"])
    found: JsonObject = _without_places(without_sources(config, ("found_in",)))
    return found


def anonymous_split(split: Split) -> JsonObject:
    """The plain values of a split with numbers in place of the names of cases and groups.

    Args:
        split: the cases that a network was trained on.
    """

    def unnamed(kind: str, cases: Sequence[SplitCase]) -> tuple[SplitCase, ...]:
        return tuple(
            replace(case, name=f"{kind}_{number:04d}", group=None, target=None)
            for number, case in enumerate(cases, start=1)
        )

    training, validation = unnamed("training", split.training), unnamed("validation", split.validation)
    without_names = replace(split, training=training, validation=validation, fold=anonymous_fold(split.fold))
    found: JsonObject = _without_places(without_names.to_json())
    return found


def _without_places(plain: Any) -> Any:
    """Plain values with the last name of each absolute path: folders of the machine say nothing elsewhere."""
    if isinstance(plain, Mapping):
        return {key: _without_places(value) for key, value in plain.items()}
    if isinstance(plain, list | tuple):
        return [_without_places(value) for value in plain]
    if isinstance(plain, str) and plain.startswith(("/", "~")):
        return Path(plain).name or plain
    return plain
