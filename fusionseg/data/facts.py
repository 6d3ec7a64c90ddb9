"""What the checks of a data set report: problems, and the facts of a case."""

from __future__ import annotations

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


@dataclass
class CaseFacts:
    """What the checks of a case found; small, since it travels between processes."""

    name: str
    problems: list[Problem] = field(default_factory=list)
    shape: tuple[int, ...] | None = None
    spacing_mm: tuple[float, ...] | None = None
    orientation: str = ""
    image_dtypes: list[str] = field(default_factory=list)
    label_dtype: str = ""
    label_voxels: dict[int, int] = field(default_factory=dict)
    # Channel -> lowest, highest, a sample.
    intensity: dict[int, tuple[float, float, Array]] = field(default_factory=dict)
    # Image file, digest of its voxels.
    digests: list[tuple[str, str]] = field(default_factory=list)

    def add(self, severity: Severity, file: Path, code: str, message: str, remedy: str) -> None:
        self.problems.append(Problem(severity, self.name, str(file), code, message, remedy))
