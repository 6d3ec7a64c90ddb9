"""The user's word about the code that run folders and archives name: an option, an environment variable, an answer.

Without other modules of this package, because every command imports it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from fusionseg.utils.errors import UserError

TRUST = "FUSIONSEG_TRUST"
"""Environment variable with the dotted paths, separated by commas, that run folders and archives may name."""


@dataclass(frozen=True)
class _Word:
    """The word of the user about the code of others."""

    trusts: bool = False
    asks: bool = False


_NOTHING = _Word()
_word: ContextVar[_Word] = ContextVar("_word", default=_NOTHING)
"""Of this thread: two threads of a server may open runs of different people."""
_answered: set[str] = set()
"""Questions that the user has answered with yes."""


class NotAllowedError(UserError):
    """Code of others is named that the user does not allow."""


@contextmanager
def trusting(trust: bool, *, ask: bool = False) -> Iterator[None]:
    """Within the body, allow all code that run folders and archives name, or ask at the terminal.

    Args:
        trust: whether the user has said that the code is trusted. False leaves an outer True as it is.
        ask: ask at the terminal, if there is one and this process is alone.
    """
    outer = _word.get()
    token = _word.set(_Word(trust or outer.trusts, ask or outer.asks))
    try:
        yield
    finally:
        _word.reset(token)


def is_trusting() -> bool:
    """Tell whether the user has said that all code is trusted."""
    return _word.get().trusts


def listed_code() -> set[str]:
    """The dotted paths that the environment variable allows."""
    return {name.strip() for name in os.environ.get(TRUST, "").split(",")}


def allow(statement: str, lines: Sequence[str], names: Sequence[str], further: str = "") -> None:
    """Return if the user allows the code of a message, by `trusting` or at the terminal.

    Args:
        statement: the first line.
        lines: one for each dotted path.
        names: the dotted paths.
        further: the last words of the message.

    Raises:
        NotAllowedError: nobody allows it.
    """
    text = "\n".join([statement, *lines])
    if is_trusting() or text in _answered:
        return
    alone = os.environ.get("WORLD_SIZE", "1") == "1" and os.environ.get("SLURM_NTASKS", "1") == "1"
    if _word.get().asks and alone and sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty():
        print(f"{text}\nImport and run it? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            _answered.add(text)
            return
        raise NotAllowedError("the code was not allowed, and nothing of it was imported")
    listed = ",".join(sorted(set(names)))
    raise NotAllowedError(
        f"{text}\nIf you know who wrote it and what it does, add --trust (in Python: trust=True), or set"
        f" {TRUST}={listed}{further}"
    )
