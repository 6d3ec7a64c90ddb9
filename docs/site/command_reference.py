"""The reference of the commands as a Markdown page, from the parsers of the program."""

from __future__ import annotations

import argparse
import itertools
import textwrap

from fusionseg.cli import build_parser
from fusionseg.commands.base import subparsers

HEAD = """# Commands

Reference of the program `fusionseg`, made from its parsers: `fusionseg help COMMAND` prints the same. All commands have
`--help`, `--quiet` (warnings, errors and the result only) and `--verbose` (debug messages too).

`python -m fusionseg COMMAND` is the same program. Exit status: 0: done. 2: the request is wrong, and the message says
what is wrong and what to do. 1: any other end.
"""
EVERYWHERE = {"help", "quiet", "verbose"}
"""Options of every command."""


def render() -> str:
    """Render the page as Markdown."""
    program = build_parser()
    return "\n".join([HEAD, *(_section(parser, 2) for parser in subparsers(program).values())])


def _section(parser: argparse.ArgumentParser, level: int) -> str:
    """The section of a command: its description, usage, arguments and examples; then those of its own commands."""
    parts = [
        f"{'#' * level} {parser.prog}",
        parser.description or "",
        f"```text\n{_usage(parser)}\n```",
        _table(parser),
    ]
    parts += [_epilog(parser.epilog)] if parser.epilog else []
    parts += [_section(inner, level + 1) for inner in subparsers(parser).values()]
    return "\n\n".join(part for part in parts if part) + "\n"


def _usage(parser: argparse.ArgumentParser) -> str:
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    usage = usage.replace("[-h] [--quiet] [--verbose] ", "")
    return textwrap.fill(usage, 88, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)


def _epilog(text: str) -> str:
    """Examples, which are indented, as blocks; other lines as text."""
    parts = []
    for indented, lines in itertools.groupby(
        text.rstrip().splitlines(), lambda line: not line or line.startswith("  ")
    ):
        block = "\n".join(lines)
        if indented and block.strip():
            parts.append(f"```text\n{textwrap.dedent(block).strip()}\n```")
        elif block.strip():
            parts.append(block[0].upper() + block[1:])
    return "\n\n".join(parts)


def _table(parser: argparse.ArgumentParser) -> str:
    """The arguments and options of a command as a table."""
    actions = [each for each in parser._actions if each.dest not in EVERYWHERE and each.help != argparse.SUPPRESS]
    rows = [
        f"| {_name(each)} | {_cell(each.help or '')} |"
        for each in actions
        if not isinstance(each, argparse._SubParsersAction)
    ]
    return "\n".join(["| argument | meaning |", "|---|---|", *rows]) if rows else ""


def _name(action: argparse.Action) -> str:
    if action.nargs == 0:
        value = ""
    elif action.choices is not None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    elif isinstance(action.metavar, tuple):
        value = " ".join(action.metavar)
    else:
        value = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    value += " ..." if action.nargs in ("*", "+") else ""
    return f"`{_cell(' '.join([', '.join(action.option_strings), value]).strip())}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("%%", "%").replace("|", "\\|")
