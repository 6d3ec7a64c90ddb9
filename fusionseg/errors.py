"""The one exception that means "the request or the configuration is wrong"."""

from __future__ import annotations

from collections.abc import Iterable


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


class TrainingStopped(Exception):
    """Training cannot go on (too many non-finite steps, say): exit status 1, the reason already recorded."""
