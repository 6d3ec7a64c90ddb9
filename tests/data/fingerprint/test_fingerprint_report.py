"""The files of a fingerprint: a page that needs nothing else, a figure, the same bytes for the same data."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import pytest
from html_pages import NEEDS_CHROMIUM, Page, assert_self_contained, open_in_chromium

from fusionseg.cli import main
from fusionseg.data.fingerprint.fingerprint import DamagedCase, Fingerprint
from fusionseg.data.fingerprint.outliers import find_outliers
from fusionseg.data.fingerprint.page import make_page
from fusionseg.data.fingerprint.reading import read_fingerprint
from fusionseg.data.fingerprint.report import write_report
from fusionseg.data.formats.dataset import open_dataset
from fusionseg.utils.errors import UserError

MakeDataset = Callable[..., Path]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, make_dataset: MakeDataset) -> Fingerprint:
    root = make_dataset(tmp_path_factory.mktemp("page") / "set", cases=5, classes=3, channels=2)
    return read_fingerprint(open_dataset(root, require_files=False), workers=1)


def test_the_page_is_whole_and_asks_no_other_place(found: Fingerprint, tmp_path: Path) -> None:
    content, picture, page = write_report(tmp_path / "new", found)
    parsed = assert_self_contained(page)
    assert parsed.sources
    # Every case has a row, and a point in each panel that leads to it.
    for index in range(len(found.cases)):
        assert f"case{index}" in parsed.ids and parsed.links.count(f"#case{index}") >= 6
    assert json.loads(content.read_text())["dataset"] == found.dataset
    pixels = matplotlib.image.imread(picture)
    assert pixels.shape[1] > 1000 and pixels.std() > 0.05
    first = [path.read_bytes() for path in (content, picture, page)]
    assert [path.read_bytes() for path in write_report(tmp_path / "new", found)] == first


@NEEDS_CHROMIUM
def test_a_browser_shows_the_page(found: Fingerprint, tmp_path: Path) -> None:
    page = write_report(tmp_path / "new", found)[2]
    assert open_in_chromium(page, tmp_path / "browser").std() > 10


def test_names_are_text_and_not_part_of_the_page(found: Fingerprint) -> None:
    cases = (replace(found.cases[0], name="<i>$x & y"), *found.cases[1:])
    odd = replace(
        found,
        dataset="<script>alert(1)</script>",
        cases=cases,
        previews={},
        damaged=(DamagedCase("<b>", ("a.nii.gz: cannot be read; <copy it> again",)),),
    )
    text = make_page(odd, find_outliers(odd), "<svg></svg>")
    assert Page(text).tags.isdisjoint({"i"}) and text.count("<script>") == 1
    assert "&lt;i&gt;$x &amp; y" in text and "&lt;copy it&gt; again" in text


def test_a_page_without_labels_or_with_a_single_case(found: Fingerprint, tmp_path: Path) -> None:
    one = replace(found.cases[0], outputs={}, labelled=False, foreground=(None, None), foreground_box=None)
    bare = replace(found, outputs=(), cases=(one,), previews={})
    page = write_report(tmp_path, bare)[2].read_text()
    assert "intensities of the volume" in page and "<h2>Classes</h2>" not in page


def test_without_any_usable_case_nothing_is_written(found: Fingerprint, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training case can be used"):
        write_report(tmp_path / "new", replace(found, cases=()))
    assert not (tmp_path / "new").exists()


def test_check_writes_the_fingerprint(
    tmp_path: Path, make_dataset: MakeDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_dataset(tmp_path / "set", cases=3)
    assert main(["check", str(root), "--fingerprint", str(tmp_path / "out"), "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "3 cases, 0 errors" in said and "Outliers: no single case" in said and "fingerprint.html" in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "fingerprint.html",
        "fingerprint.json",
        "fingerprint.png",
    }
    (tmp_path / "file").touch()
    assert main(["check", str(root), "--fingerprint", str(tmp_path / "file")]) == 2
    assert "--fingerprint: " in capsys.readouterr().err
    for path in (root / "imagesTr").iterdir():
        path.write_bytes(b"")
    assert main(["check", str(root), "--fingerprint", str(tmp_path / "none"), "--workers", "1"]) == 1
    assert "fingerprint: none, because no training case can be used" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
