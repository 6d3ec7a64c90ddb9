"""Exceptions that end a command with a message instead of a traceback, and helpers for their messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager


class UserError(Exception):
    """A request that cannot be carried out.

    Every entry point turns it into a message without a traceback and exit status 2.

    Args:
        problems: one problem, or all of them. Each says what is wrong, where (file, line, key) and what to do.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[UserError], tuple[list[str]]]:
        # Worker processes raise it too. Python's default would pass the joined text on as one problem.
        return type(self), (self.problems,)


class Problems:
    """The problems of independent checks, collected so that one message lists them all.

    Example::

        problems = Problems()
        with problems.collect():
            check_one()
        with problems.collect():
            check_other()
        problems.raise_if_any()
    """

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Catch a UserError that the body raises, and keep its problems."""
        try:
            yield
        except UserError as error:
            self.found += [problem for problem in error.problems if problem not in self.found]

    def raise_if_any(self) -> None:
        """Raise one UserError with all problems.

        Raises:
            UserError: a check has failed.
        """
        if self.found:
            raise UserError(self.found)


class WriteError(OSError):
    """A file that cannot be written: its name in `filename`, the cause and the remedy in `strerror`.

    Every entry point turns it into a message without a traceback and exit status 1. What was written before stays.
    """

    def __str__(self) -> str:
        return f"{self.filename}: cannot be written: {self.strerror}"


class TrainingStopped(Exception):
    """A training that cannot continue, for example after too many non-finite steps.

    The run records the reason. Every entry point turns it into a message without a traceback and exit status 1.
    """


def some_of(names: Sequence[str], most: int = 10) -> str:
    """List the first names for a message, and count the others.

    Args:
        names: all names.
        most: number of names to list.
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def first_of(problems: Sequence[str], most: int = 20) -> list[str]:
    """The first problems of a list, and a line that counts the others.

    Args:
        problems: all problems, a line each.
        most: number of problems to list.
    """
    more = [f"  ... and {len(problems) - most} more"] if len(problems) > most else []
    return [*problems[:most], *more]


def suggest(wrong: str, valid: Iterable[str], *, listed: bool = True) -> str:
    """Name the nearest valid name, and list all of them, for a message.

    Args:
        wrong: the name that is not valid.
        valid: the valid names.
        listed: False leaves out the list, where it would be long.
    """
    names = list(valid)
    near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}{'Valid' if near else 'valid'}: {', '.join(names)}" if listed else hint.rstrip()
