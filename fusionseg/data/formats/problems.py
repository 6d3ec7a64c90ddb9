"""Problems of a data set, and the error of a case that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fusionseg.data.formats.image_file import Severity


@dataclass(frozen=True)
class Problem:
    """A fault of the data.

    Args:
        severity: an error keeps the case from being used.
        case: its name; empty for the data set as a whole.
        file: the path.
        code: a short name of the kind of fault, for programs.
        message: the fault.
        remedy: the advice to the user.
    """

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
        return type(self), (self.problems,)  # for pickle: worker processes raise it too


@dataclass
class Findings:
    """The problems of one case.

    Args:
        name: of the case; empty where it is not needed.
        problems: in the order in which they were found.
    """

    name: str = ""
    problems: list[Problem] = field(default_factory=list)

    def add(self, severity: Severity, file: Path, code: str, message: str, remedy: str) -> None:
        """Note a problem; for the arguments see `Problem`."""
        self.problems.append(Problem(severity, self.name, str(file), code, message, remedy))

    @property
    def errors(self) -> tuple[Problem, ...]:
        """Problems that keep the case from being used."""
        return tuple(problem for problem in self.problems if problem.severity == "error")

    def refuse(self) -> None:
        """Raise the errors, if there are any.

        Raises:
            CaseError: with all of them.
        """
        if self.errors:
            raise CaseError(self.errors)
