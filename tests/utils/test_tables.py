"""Numbers and names in texts."""

from __future__ import annotations

import pytest

from fusionseg.utils.tables import counted, markdown_table, plain_number, printable


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


def test_a_name_gives_no_command_to_the_terminal() -> None:
    name = "case\x1b]0;title\x07\r\x9b2J\u202egni.iin"
    assert printable(f"{name}:\tis missing\n") == r"case\x1b]0;title\x07\r\x9b2J\u202egni.iin" + ":\tis missing\n"
    assert printable("Jürgen 脳 ±1 µm") == "Jürgen 脳 ±1 µm"
    assert markdown_table([["case"], ["a\nb\x1b"]]).splitlines()[2] == r"| a\nb\x1b |"
