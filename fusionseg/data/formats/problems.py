"""What the checks of a data set report: problems, and the facts of a case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

Severity = Literal["error", "warning"]
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Problem:
    """Something wrong with the data: what, where, and what to do."""

    severity: Severity
    case: str
    file: str
    code: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}: {self.message}; {self.remedy}"


class CaseError(ValueError):
    """A case that cannot be used.

    Args:
        problems: all errors of the case.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(" | ".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type[CaseError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)  # raised in worker processes too


@dataclass
class Findings:
    """The problems of one case; `name` is the case's, empty where it does not matter."""

    name: str = ""
    problems: list[Problem] = field(default_factory=list)

    def add(self, severity: Severity, file: Path, code: str, message: str, remedy: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(severity, self.name, str(file), code, message, remedy))

    def refuse(self) -> None:
        """Raise the errors, if there are any.

        Raises:
            CaseError: with all of them.
        """
        if errors := [problem for problem in self.problems if problem.severity == "error"]:
            raise CaseError(errors)


@dataclass
class CaseFacts(Findings):
    """The result of the checks of a case; small, since it travels between processes."""

    shape: tuple[int, ...] | None = None
    spacing_mm: tuple[float, ...] | None = None
    orientation: str = ""
    image_dtypes: list[str] = field(default_factory=list)
    label_dtype: str = ""
    label_voxels: dict[int, int] = field(default_factory=dict)
    # Channel -> lowest, highest, a sample.
    intensity: dict[int, tuple[float, float, Array]] = field(default_factory=dict)
    digest: str = ""
    """Of the image's voxels, empty where they could not be read or are all alike."""
