"""Counts of what a sampling plan has drawn: patches by the class at their centre, and by case."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SHOWN = 6
"""Number of classes, and of cases, whose counts are written out."""


@dataclass(frozen=True)
class DrawnCounts:
    """Numbers of patches of some steps.

    Args:
        steps: of the optimizer.
        classes: by class index; 0 for patches at any position.
        cases: by case index.
    """

    steps: range
    classes: Counter[int]
    cases: Counter[int]

    def by_class(self, names: Sequence[str]) -> dict[str, int]:
        """The number of patches that are centred on each foreground class.

        Args:
            names: of the classes, the background first.
        """
        return {name: self.classes[index] for index, name in enumerate(names) if index}

    def by_case(self, names: Sequence[str]) -> dict[str, int]:
        """The number of patches of each case.

        Args:
            names: of the cases.
        """
        return {name: self.cases[index] for index, name in enumerate(names)}

    def summary(self, class_names: Sequence[str], case_names: Sequence[str]) -> str:
        """One line for the log.

        Args:
            class_names: the background first; empty if the training needs no labels.
            case_names: of the training cases.
        """
        text = f"{self.cases.total()} patches of steps {self.steps.start + 1} to {self.steps.stop}"
        if class_names:
            classes = self.by_class(class_names)
            text += f", centred on {_written(classes, 'classes')}, any position: {self.classes[0]}"
        cases = self.by_case(case_names)
        return f"{text}; {'cases ' if len(cases) <= SHOWN else ''}{_written(cases, 'cases')}"


def _written(counts: Mapping[str, int], kind: str) -> str:
    """Write out the counts by name; of more than `SHOWN`, the least and the most."""
    if len(counts) <= SHOWN:
        return ", ".join(f"{name}: {count}" for name, count in counts.items())
    (most, highest), *_, (least, lowest) = sorted(counts.items(), key=lambda item: -item[1])
    return f"{len(counts)} {kind}, {lowest} ({least}) to {highest} ({most}) each"
