"""The start of a training with many cases: its work grows with the number of cases, and not with its square.

Operations are counted, because times on a shared machine say little. The counted ones are the calls of fusionseg's
functions (each step of a generator is one), and the comparisons and hashes of the names of the cases, which tell of a
search in a list too.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import fusionseg
from fusionseg.data.formats.case import Case
from fusionseg.training.start import train

PACKAGE = str(Path(fusionseg.__file__).parent)
FEW, MANY = 8, 32
SLACK = 1.15
"""Allowed growth over that of the cases: threads and rare branches vary."""
CONSTANT = 30
"""Calls that a function may have more with many cases, whatever their number."""


class CountedName(str):
    """The name of a case whose comparisons and hashes are calls of these methods."""

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) is True

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return str.__hash__(self)


def calls_of(work: Callable[[], Any]) -> Counter[str]:
    """The calls of each function of the package, and of names, in all threads that begin while `work` runs."""
    calls: Counter[Any] = Counter()

    def count(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            calls[frame.f_code] += 1

    threading.setprofile(count)
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    found: Counter[str] = Counter()
    for code, number in calls.items():
        if code.co_filename.startswith((PACKAGE, __file__, "<string>")):  # dataclasses are compared by generated code
            found[f"{code.co_filename.removeprefix(PACKAGE)}:{code.co_firstlineno} {code.co_qualname}"] += number
    return found


def excess(few: Counter[str], many: Counter[str], ratio: float) -> dict[str, tuple[int, int]]:
    """The functions whose calls grew by more than a ratio: (calls with few cases, calls with many)."""
    return {name: (few[name], number) for name, number in many.items() if number > SLACK * ratio * few[name] + CONSTANT}


@pytest.fixture
def counted_names(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Case.__init__

    def initialise(case: Case, *args: Any, **kwargs: Any) -> None:
        original(case, *args, **kwargs)
        object.__setattr__(case, "name", CountedName(case.name))

    monkeypatch.setattr(Case, "__init__", initialise)


def test_the_work_of_a_start_grows_with_the_cases(
    tmp_path: Path, make_dataset: Any, tiny_config: Any, counted_names: None
) -> None:
    calls = []
    for cases in (FEW, MANY):
        root = make_dataset(tmp_path / f"data_{cases}", cases=cases, shape=(16, 16, 16))

        def start(name: str, root: Path = root) -> None:
            never = {"every": 1_000_000}
            train(
                tiny_config(
                    root, tmp_path / "runs", name=name, train={"steps": 1}, validate=never, checkpoint=never,
                    cache={"read_threads": 2},
                )
            )  # fmt: skip

        start(f"prepare_{cases}")
        calls.append(calls_of(lambda start=start, cases=cases: start(f"count_{cases}")))
    few, many = calls
    assert few[next(name for name in few if name.endswith(" PreparedCase.from_json"))] >= FEW
    assert few[next(name for name in few if name.endswith(" CountedName.__eq__"))] >= FEW
    assert excess(few, many, MANY / FEW) == {}


def test_a_search_in_a_list_of_names_and_a_loop_of_loops_are_found() -> None:
    def calls(count: int) -> Counter[str]:
        names = [CountedName(f"case_{i}") for i in range(count)]

        def search() -> None:
            for i in range(count):
                assert str(f"case_{i}") in names
                assert sum(1 for _ in names) == count

        return calls_of(search)

    found = excess(calls(FEW), calls(MANY), MANY / FEW)
    assert {name.rpartition(" ")[2].rpartition(".")[2] for name in found} == {"__eq__", "<genexpr>"}
