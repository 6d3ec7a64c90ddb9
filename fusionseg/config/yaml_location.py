"""YAML files, and the file and line of every key, for error messages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from fusionseg.config.shipped.lookup import nearby, shown_path
from fusionseg.utils.errors import UserError

KeyPath = tuple[str | int, ...]
Locations = dict[KeyPath, str]
"""The location of each key: "configs/base.yaml, line 12", or "command line: seed=3"."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number and 2024-05-01 as a string, as YAML 1.2 does."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own, shared by all loaders
        first: [rule for rule in rules if rule[0] != "tag:yaml.org,2002:timestamp"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Dumper(yaml.SafeDumper):
    """SafeDumper that puts the string 1e-4 in quotes. Without them `_Loader` would read it as a number."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d[\d_]*(\.[\d_]*)?|\.[\d_]+)[eE][-+]?\d+$"),
        list("-+0123456789."),
    )


def dump_yaml(value: dict[str, Any]) -> str:
    """Write plain values as YAML that `read_yaml` reads back unchanged."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110)


def dump_value(value: Any) -> str:
    """Write a plain value on one line, as the value of a key.

    Args:
        value: numbers, texts, lists and dictionaries of them, None.
    """
    text = yaml.dump([value], Dumper=_Dumper, sort_keys=False, default_flow_style=True, width=float("inf"))
    return text.strip()[1:-1]  # without the list, which keeps a plain text on one line


def parse_value(text: str) -> tuple[Any, str]:
    """Parse a value as in the files (`[1, 2]`, `null`, `1e-4`); return it, and the text that follows it (a comment)."""
    if not text:
        return None, ""
    node = yaml.compose(text, _Loader)
    return yaml.load(text, _Loader), text[node.end_mark.index if node is not None else 0 :].strip()


def read_yaml(path: Path) -> tuple[dict[str, Any], Locations]:
    """Read a mapping and the location of each of its keys.

    Raises:
        UserError: the file is missing, is not valid YAML, repeats a key, or does not hold a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such configuration file{nearby(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    try:
        node = yaml.compose(text, _Loader)
        if node is None:
            return {}, {}
        locations: Locations = {}
        problems: list[str] = []
        _walk(node, (), shown_path(path), locations, problems)
        if problems:
            raise UserError(problems)
        value = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:  # characters that YAML does not allow
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a mapping of `key: value`, got a {type(value).__name__}")
    return value, locations


def _walk(node: yaml.Node, at: KeyPath, file: str, locations: Locations, problems: list[str]) -> None:
    """Add the location of each key below a node to `locations`, and each repeated key to `problems`."""
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key = (*at, str(key_node.value))
            location = f"{file}, line {key_node.start_mark.line + 1}"
            if key in locations:
                problems.append(f"{'.'.join(map(str, key))} ({location}): is written twice; remove one")
            locations[key] = location
            _walk(value_node, key, file, locations, problems)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            locations[(*at, index)] = f"{file}, line {item.start_mark.line + 1}"
            _walk(item, (*at, index), file, locations, problems)
