"""The exceptions that end a command with a message instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """Something the user asked for cannot be done as asked.

    Every entry point turns it into a message without a traceback and exit status 2.

    Args:
        problems: one problem or all of them; each says what is wrong, where (file, line, key), and what to do.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[UserError], tuple[list[str]]]:
        # Raised in worker processes too; the default would hand the joined text back as one problem.
        return type(self), (self.problems,)


class WriteError(OSError):
    """A file cannot be written: `filename`, and in `strerror` the cause and what to do.

    Every entry point turns it into a message without a traceback and exit status 1: work was under way, and what it
    has written before stays.
    """

    def __str__(self) -> str:
        return f"{self.filename}: cannot be written: {self.strerror}"


class TrainingStopped(Exception):
    """Training cannot go on (too many non-finite steps, say): exit status 1, the reason already recorded."""


def some_of(names: Sequence[str], most: int = 10) -> str:
    """The first names of a list, for a message, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def suggest(wrong: str, valid: Iterable[str], *, listed: bool = True) -> str:
    """The nearest valid name and the list of all, for a message.

    Args:
        listed: False leaves out the list, where it would be long.
    """
    names = list(valid)
    near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}Valid: {', '.join(names)}" if listed else hint.rstrip()
