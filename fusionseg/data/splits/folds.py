"""Folds that are drawn: by names and seed, with the cases of a group together, with balanced strata."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fusionseg.data.formats.case import Case
from fusionseg.utils.errors import UserError, some_of


@dataclass(frozen=True)
class _Unit:
    """Cases that go into one fold together: a group, or a single case."""

    name: str
    cases: tuple[str, ...]
    strata: Counter[str]
    """Number of its cases in each stratum."""


def draw_folds(cases: Sequence[Case], folds: int, seed: int, group: str | None = None) -> dict[str, int]:
    """Assign each case to a fold.

    The result depends on the names, groups and strata of the cases and on the seed, and not on their order. It is the
    same with every version of Python and NumPy. Without groups, the sizes of the folds differ by at most one; without
    groups and strata, the cases are dealt out in the order of a hash.

    Groups and strata are balanced greedily, as in iterative stratification (Sechidis et al., 2011, "On the
    stratification of multi-label data"): large groups come first, then those of rare strata, and each goes to the fold
    that has the smallest share of its cases and of its strata.

    Args:
        cases: at least as many as folds; each of them has a group, or none has one.
        folds: number of folds.
        seed: of the order.
        group: `data.group`, for the message.

    Returns:
        The fold by the name of the case.

    Raises:
        UserError: there are fewer groups than folds.
    """
    units = _units(cases)
    if len(units) < folds:
        remedy = f"set data.folds to {len(units)} or less" if len(units) > 1 else "name another column or pattern"
        raise UserError(
            f"data.folds={folds}: data.group={group} has only {len(units)} groups"
            f" ({some_of([unit.name for unit in units])}), and each fold needs one; {remedy}"
        )
    totals = sum((unit.strata for unit in units), Counter[str]())

    def order(unit: _Unit) -> tuple[int, int, bytes]:
        rarest = min((totals[stratum] for stratum in unit.strata), default=0)
        # A hash instead of a generator, because the split must be the same with every version of numpy and Python.
        return -len(unit.cases), rarest, hashlib.sha256(f"{seed}:{unit.name}".encode()).digest()

    sizes = [0] * folds
    strata = [Counter[str]() for _ in range(folds)]
    found: dict[str, int] = {}
    ordered = sorted(units, key=order)
    for position, unit in enumerate(ordered):
        possible = _folds_with_room(sizes, ordered, position)

        def cost(fold: int, unit: _Unit = unit) -> tuple[float, int]:
            """The rise of the sum of squared shares of the folds: the smallest rise gives the most even folds."""
            rise = len(unit.cases) * (2 * sizes[fold] + len(unit.cases)) / len(cases) ** 2
            for stratum in sorted(unit.strata):
                own = unit.strata[stratum]
                rise += own * (2 * strata[fold][stratum] + own) / totals[stratum] ** 2
            return rise, fold

        chosen = min(possible, key=cost)
        sizes[chosen] += len(unit.cases)
        strata[chosen] += unit.strata
        found |= dict.fromkeys(unit.cases, chosen)
    return found


def _units(cases: Sequence[Case]) -> list[_Unit]:
    """The units of cases, sorted by name."""
    members: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda case: case.name):
        members.setdefault(case.name if case.group is None else case.group, []).append(case)
    return [
        _Unit(
            name,
            tuple(case.name for case in members[name]),
            Counter(stratum for case in members[name] for stratum in case.stratum),
        )
        for name in sorted(members)
    ]


def _folds_with_room(sizes: list[int], ordered: Sequence[_Unit], position: int) -> list[int]:
    """The folds that the next unit may go to: no fold stays empty, and single cases give folds of equal sizes."""
    folds = range(len(sizes))
    empty = [fold for fold in folds if not sizes[fold]]
    if len(ordered) - position <= len(empty):
        return empty
    if len(ordered[0].cases) > 1:
        return list(folds)
    base, larger = divmod(len(ordered), len(sizes))
    room_above = sum(size > base for size in sizes) < larger
    return [fold for fold in folds if sizes[fold] < base or (sizes[fold] == base and room_above)]
