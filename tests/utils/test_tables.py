"""Numbers in texts."""

from __future__ import annotations

import pytest

from fusionseg.utils.tables import counted, plain_number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.001234, "0.00123"),
        (12.345, "12.3"),
        (999.4, "999"),
        (-999.6, "-1000"),
        (999.5, "1000"),
        (84200.4, "84200"),
        (2e9, "2e+09"),
    ],
)
def test_people_see_an_exponent_in_huge_numbers_only(value: float, text: str) -> None:
    assert plain_number(value) == text


def test_one_thing_is_counted_in_the_singular() -> None:
    assert [counted(count, "run") for count in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]
