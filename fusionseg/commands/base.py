"""Command-line parsers: the options of all commands, the way that a command is run, and errors with suggestions."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeAlias

from fusionseg import __version__
from fusionseg.runs.trust.consent import trusting
from fusionseg.utils.errors import suggest
from fusionseg.utils.exit_status import DONE, FAILED, WRONG_REQUEST, run
from fusionseg.utils.logs import Verbosity, is_quiet, process_rank, set_verbosity, start_logging
from fusionseg.utils.streams import lost_output, protect

# argparse has no public name for this type, and the type has no parameter at run time.
Commands: TypeAlias = "argparse._SubParsersAction[Parser]"

_PATIENCE_S = 0.7
"""Seconds of loading after which `loading` prints its message."""


def positive(text: str) -> int:
    """Read the value of an option that is a number of at least 1.

    Args:
        text: from the command line.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


class Parser(argparse.ArgumentParser):
    """A parser with `--quiet` and `--verbose`. An unknown option is reported with the nearest valid one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)
        # Without a default: a command's parser must not reset an option that was given before the command.
        for name, text in (
            ("quiet", "show warnings, errors and the result only"),
            ("verbose", "show debug messages too"),
        ):
            self.add_argument(f"--{name}", action="store_true", default=argparse.SUPPRESS, help=text)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(WRONG_REQUEST, f"{self.prog}: error: {message}\n")

    def refuse_unknown(self, words: Sequence[str]) -> NoReturn:
        """End the program with a message about words that no option or argument takes."""
        options = [text for action in self._actions for text in action.option_strings if text.startswith("--")]
        hints = [suggest(word.split("=")[0], options, listed=False) for word in words if word.startswith("-")]
        hint = next(filter(None, hints), "")
        self.error(f"unrecognized arguments: {' '.join(words)}{f': {hint}' if hint else ''}; see {self.prog} --help")


def add_command(
    commands: Commands,
    name: str,
    text: str,
    example: str,
    work: Callable[[argparse.Namespace], int],
) -> Parser:
    """Add a command to the program, and return the parser of its arguments.

    Args:
        commands: the commands of the program so far.
        name: the word that selects the command.
        text: one line for the list of commands.
        example: command lines that the help shows.
        work: runs the command on its parsed arguments and returns the exit status.
    """
    parser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"example:\n  {example}",
    )
    parser.set_defaults(work=work, parser=parser)
    return parser


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the option of commands that import the code which a run folder or an archive names.

    Args:
        parser: the parser of the command.
    """
    parser.add_argument(
        "--trust",
        action="store_true",
        help="import code of others that the runs name, such as own networks, without a question; see docs/security.md",
    )


def _apply_verbosity(parser: Parser, arguments: argparse.Namespace) -> None:
    """Start logging with the verbosity of `--quiet` or `--verbose`. Both together end the program with a message."""
    quiet, verbose = getattr(arguments, "quiet", False), getattr(arguments, "verbose", False)
    if quiet and verbose:
        parser.error("--quiet and --verbose exclude each other: give one of them")
    set_verbosity(Verbosity.QUIET if quiet else Verbosity.VERBOSE if verbose else Verbosity.NORMAL)
    start_logging(process_rank())


@contextmanager
def loading(what: str = "torch") -> Iterator[None]:
    """Print to standard error that libraries are being loaded, if the body (their imports) takes long.

    Args:
        what: names of the libraries.
    """

    def announce() -> None:
        print(f"fusionseg {__version__}: loading {what} ...", file=sys.stderr, flush=True)

    if is_quiet() or process_rank() > 0:
        yield
        return
    timer = threading.Timer(_PATIENCE_S, announce)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands of a parser, by name; none for a command without further commands.

    Args:
        parser: that of the program, or of a command.
    """
    # argparse has no public access to the parsers that were added.
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: each for group in groups for name, each in group.choices.items()}


def parse(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line. A wrong one ends the program with a message and status 2.

    Args:
        parser: that of a program.
        argv: the words after the program's name; None takes those of this process.
    """
    arguments, rest = parser.parse_known_args(argv)
    # After an option, argparse accepts no further key.path=value words: `rest` holds them.
    if rest and (any(text.startswith("-") for text in rest) or not hasattr(arguments, "overrides")):
        getattr(arguments, "parser", parser).refuse_unknown(rest)
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def execute(parser: Parser, argv: Sequence[str] | None) -> int:
    """Parse a command line, run its command, and return the exit status.

    Args:
        parser: its result has `work`, the function to run (see `add_command`).
        argv: the words after the program's name; None takes those of this process.
    """
    protect()
    arguments = parse(parser, argv)
    _apply_verbosity(parser, arguments)
    try:
        with trusting(getattr(arguments, "trust", False), ask=True):
            status = run(lambda: int(arguments.work(arguments)))
    finally:
        set_verbosity(Verbosity.NORMAL)  # the next command in this process must not inherit it
    if status == DONE and (reason := lost_output()) is not None:
        print(f"error: standard output: {reason}: what the command printed there is incomplete", file=sys.stderr)
        return FAILED
    return status
