"""The choices of a plan, each a key with its value and the reason for it, and the YAML of them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fusionseg.config.yaml_location import dump_value

_WIDTH = 110


@dataclass(frozen=True)
class Choice:
    """One key of a planned configuration.

    Args:
        key: its path, such as data.patch; at most two names.
        value: a plain value.
        reason: the reason, with the numbers behind it. Choices without a reason of their own belong to the one above.
    """

    key: str
    value: Any
    reason: str = ""


def plain_values(choices: Iterable[Choice]) -> dict[str, Any]:
    """The choices as the nested values of a configuration.

    Args:
        choices: those of a plan.
    """
    values: dict[str, Any] = {}
    for choice in choices:
        section, _, key = choice.key.partition(".")
        if key:
            values.setdefault(section, {})[key] = choice.value
        else:
            values[section] = choice.value
    return values


def commented_yaml(header: Sequence[str], choices: Sequence[Choice]) -> str:
    """Write a configuration with the reasons as comments above the keys.

    Args:
        header: paragraphs for the comment at the top.
        choices: in the order of the file. Those of one section follow each other.
    """
    paragraphs = [line for text in header for line in (*_wrapped(text, 0), "#")]
    lines = [*paragraphs[:-1], ""]
    open_section = None
    for choice in choices:
        section, _, key = choice.key.partition(".")
        if not key:
            lines += ["", *_wrapped(choice.reason, 0)] if choice.reason else []
            lines.append(f"{section}: {dump_value(choice.value)}")
            continue
        if section != open_section:
            lines += ["", f"{section}:"]
            open_section = section
        lines += [*_wrapped(choice.reason, 2), f"  {key}: {dump_value(choice.value)}"]
    return "\n".join(lines) + "\n"


def by(values: Sequence[object]) -> str:
    """Sizes along the axes, for texts: 40 x 56 x 40."""
    return " x ".join(map(str, values))


def _wrapped(text: str, indent: int) -> list[str]:
    """A text as lines of a comment. A text that begins with a space, such as a command, stays on one line."""
    start = " " * indent + "# "
    if text.startswith(" "):
        return [start + text]
    return [start + line for line in textwrap.wrap(text, _WIDTH - len(start), break_on_hyphens=False)]
