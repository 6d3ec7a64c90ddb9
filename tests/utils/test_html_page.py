"""Pages that request nothing, with charts, as a browser shows them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from html_pages import NEEDS_CHROMIUM, Page, assert_self_contained, open_in_chromium

from fusionseg.utils.charts import MAX_POINTS, Curve, Point, curve_chart, row_chart, scatter_chart, share_chart
from fusionseg.utils.html_page import Cell, TableRow, figure, heading, html_page, picture_uri, sortable_table, tiles

NAN = float("nan")


def polylines(svg: str) -> list[list[tuple[float, float]]]:
    """The points of the lines in a chart."""
    lines = re.findall(r'points="([^"]*)"', svg)
    return [[(float(x), float(y)) for x, y in (pair.split(",") for pair in line.split())] for line in lines]


def circles(svg: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.-]+)" cy="([\d.-]+)"', svg)]


def write_example(folder: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    rows = [
        TableRow([Cell(f"case {k}"), Cell(f"{value}", f"{value}")], f"case{k}") for k, value in enumerate((3, 1, 2))
    ]
    parts = [
        heading("Numbers", "with <a note>"),
        tiles([("1", "one")]),
        sortable_table(["name", "value"], rows),
        figure(f"<img alt='' src='{picture_uri(noise)}'>", "png", anchor="png"),
        figure(f"<img alt='' src='{picture_uri(noise, 'jpeg')}'>", "jpeg & more"),
        curve_chart([Curve("loss", [1, 2, 3], [3.0, 2.0, None]), Curve("<x>", [1, 2], [1.0, NAN])], "step", "loss"),
        row_chart({"a & b": [Point(0.3, "one", "#case0", is_marked=True), Point(0.5, "<two>")], "none": []}, "Dice"),
        scatter_chart([(1.0, Point(0.2, "x")), (100.0, Point(0.9, "y", "#case1"))], "ml", "Dice"),
        share_chart({"data": 1.0, "forward": 3.0}, "s"),
    ]
    path = folder / "page.html"
    path.write_text(html_page("A & <b>", parts))
    return path


def test_a_page_is_self_contained_and_its_text_is_text(tmp_path: Path) -> None:
    page = assert_self_contained(write_example(tmp_path))
    assert len(page.sources) == 2 and {"#case0", "#case1"} <= set(page.links)
    text = (tmp_path / "page.html").read_text()
    assert "A &amp; &lt;b&gt;" in text and "with &lt;a note&gt;" in text and "&lt;two&gt;" in text
    assert Page(text).tags.isdisjoint({"b", "x", "two"} - {"b"})


@NEEDS_CHROMIUM
def test_a_browser_shows_the_page_and_reports_no_error(tmp_path: Path) -> None:
    seen = open_in_chromium(write_example(tmp_path), tmp_path / "browser")
    assert seen.shape == (2000, 1200, 3) and seen.std() > 10
    assert (np.abs(seen.astype(int) - (209, 73, 91)).sum(axis=2) < 60).any(), "the marked point is not drawn"


@NEEDS_CHROMIUM
@pytest.mark.parametrize(
    "body",
    ["<img src='http://example.com/a.png'>", "<script>undefined_name()</script>"],
    ids=["a request", "an error"],
)
def test_the_check_of_a_page_finds_faults(tmp_path: Path, body: str) -> None:
    """With and without the policy of our pages, which refuses the request and reports that."""
    (tmp_path / "bare.html").write_text(f"<!DOCTYPE html><html><body>{body}</body></html>")
    with pytest.raises(AssertionError):
        open_in_chromium(tmp_path / "bare.html", tmp_path / "browser")
    if "img" in body:
        (tmp_path / "ours.html").write_text(html_page("x", [body]))
        with pytest.raises(AssertionError, match="Content Security Policy"):
            open_in_chromium(tmp_path / "ours.html", tmp_path / "browser2")


def test_curves_have_gaps_and_are_averaged() -> None:
    svg = curve_chart([Curve("x", [0, 1, 2, 3, 4], [1.0, 2.0, NAN, 4.0, 5.0])], "step", "x")
    first, second = polylines(svg)
    assert len(first) == 2 and len(second) == 2 and first[0][1] > first[1][1] > second[1][1]  # up is a smaller y
    many = list(range(10 * MAX_POINTS))
    (line,) = polylines(curve_chart([Curve("x", many, [float(k) for k in many])], "step", "x"))
    assert MAX_POINTS / 2 <= len(line) <= MAX_POINTS
    x, y = np.array(line).T
    assert np.abs(y - np.polyval(np.polyfit(x, y, 1), x)).max() < 0.2, "a straight line stays straight"


def test_charts_of_nothing_are_empty_and_one_value_is_drawn() -> None:
    assert curve_chart([Curve("x", [1], [None])], "a", "b") == ""
    assert row_chart({"x": [Point(NAN, "t")]}, "a") == "" and scatter_chart([], "a", "b") == ""
    assert share_chart({"x": 0.0}, "s") == ""
    for value in (0.0, 1.0, -3.0, 1e-9, 5e7):
        assert len(circles(row_chart({"x": [Point(value, "t")]}, "a"))) == 1
        assert len(polylines(curve_chart([Curve("x", [1], [value])], "a", "b", log_y=True))) == 1


def test_a_scatter_over_decades_is_logarithmic() -> None:
    points = circles(scatter_chart([(x, Point(0.5, "t")) for x in (1.0, 10.0, 100.0)], "ml", "Dice"))
    assert np.allclose(np.diff([x for x, _ in points], n=2), 0, atol=0.2)
    even = circles(scatter_chart([(x, Point(0.5, "t")) for x in (1.0, 2.0, 3.0)], "ml", "Dice"))
    assert np.allclose(np.diff([x for x, _ in even], n=2), 0, atol=0.2)


def test_shares_fill_the_bar() -> None:
    svg = share_chart({"data": 1.0, "forward": 3.0}, "s")
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', svg)]
    assert widths[1] == pytest.approx(3 * widths[0]) and "(25.0%)" in svg and "forward 3 s (75.0%)" in svg
