"""How a command is added to the program."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeAlias

# argparse gives the type no public name, and knows its parameter only when types are checked
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_command(
    commands: Commands,
    name: str,
    text: str,
    example: str,
    work: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    """A parser for the command's arguments.

    Args:
        text: what it does, for the list of commands.
        work: from the arguments to the exit status.
    """
    parser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(work=work)
    return parser
