"""The page of a folder of runs: the tables of the commands, curves, cost, and links to the pages of the runs."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pytest
from html_pages import NEEDS_CHROMIUM, assert_self_contained, open_in_chromium
from written_runs import write_evaluation, write_run
from written_sweep import write_sweep

from fusionseg.cli import main
from fusionseg.inference.reports.folder_page import write_folder_page


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks, two seeds, five folds; a run that has not finished, and a folder name with odd letters."""
    folder = write_sweep(tmp_path_factory.mktemp("pages") / "a <b> & c")
    for run in sorted(folder.glob("resunet-*")):
        (run / "environment.json").write_text(json.dumps({"parameters": 30_000_000}))
    write_run(folder / "open", [0.1, 0.2], status="", model={"name": "attention_unet"}).rename(folder / "open #1")
    assert main(["report", str(folder)]) == 0
    return folder


def test_the_page_has_every_number_of_the_commands(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, text = assert_self_contained(sweep / "report.html", neighbours=True), (sweep / "report.html").read_text()
    shown = [unescape(re.sub(r"<[^>]*>", "", cell)) for cell in re.findall(r"<td.*?</td>", text)]
    for command in ("compare", "statistics"):
        assert main([command, str(sweep), "--ensembles"]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
        cells = [
            cell.strip().strip("*") for line in lines if "---" not in line for cell in line.strip("| ").split(" | ")
        ]
        heads = {unescape(cell) for cell in re.findall(r"<th[^>]*>(.*?)</th>", text)}
        assert len(cells) > 30 and not [cell for cell in cells if cell not in shown and cell not in heads]
    assert "<b>" in text.split("<h2>Statistics")[0], "the best mean is bold"
    assert "a &lt;b&gt; &amp; c" in text
    links = [unquote(link) for link in re.findall(r"href='\./([^']*)'", text)]
    runs = sorted(path.parent.name for path in sweep.glob("*/config.yaml"))
    assert sorted(links) == [f"{name}/report.html" for name in runs]
    assert all((sweep / link).is_file() for link in links)
    assert page.tags >= {"svg", "circle", "polyline"}


def test_rows_have_one_colour_in_all_charts(sweep: Path) -> None:
    text = (sweep / "report.html").read_text()
    curves, costs = text.split("<h2>Curves")[1].split("<h2>Score and cost")
    pairs = r"color:(#\w+)'>&#9632;</span> ([^<]*)<"
    colors = {name: color for color, name in re.findall(pairs, costs)}
    assert len(set(colors.values())) == len(colors) == 3
    dots = re.findall(r'fill="(#\w+)"[^>]*><title>([^<]*): [\d.]+<', costs)
    assert dots and {(name, color) for color, name in dots} <= colors.items()
    legend = {name: color for color, name in re.findall(pairs, curves)}
    assert legend and legend.items() <= colors.items()
    assert set(re.findall(r'<polyline[^>]*stroke="(#\w+)"', curves)) <= set(colors.values())


def test_ensembles_are_no_runs_and_each_task_has_its_score(tmp_path: Path) -> None:
    folder = tmp_path / "some"
    runs = [
        write_run(folder / name, [0.5], data={"root": "/data", "fold": 0}, seed=seed) for seed, name in enumerate("ab")
    ]
    request = {"dataset": None, "with": [str(runs[1])], "checkpoint": "last"}
    write_evaluation(runs[0], 10, 0.75, folder="evaluation_ensemble", request=request)
    write_run(folder / "pre", [0.25], model={"name": "resenc_unet"}, pretrain={})
    write_folder_page(folder)
    text = (folder / "report.html").read_text()
    assert "2 runs" in text.split("<h2>Statistics")[0], "the comparison has the ensemble"
    table = text.split("<h2>Runs")[1]
    assert table.count("<tr") == 1 + 3 and re.search(r">3</\w+>\s*<\w+[^>]*>runs<", text)
    assert "dice (prepared grid) 0.5" in table and "ssim" in table


def test_a_folder_that_cannot_be_compared_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "runs/new", [], status="")
    write_run(tmp_path / "others/run", [0.5])
    assert main(["report", str(tmp_path / "runs"), str(tmp_path / "others"), "--pictures", "5"]) == 2
    said = capsys.readouterr()
    assert "none of the 1 runs has a validation" in said.err and "others: is a folder of runs, whose page" in said.err
    assert str(tmp_path / "others/report.html") in said.out
    assert not (tmp_path / "runs/report.html").exists() and (tmp_path / "runs/new/report.html").exists()


def test_damaged_and_unevaluated_runs(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "some"
    for name in ("unet-seed0-fold0", "unet-seed0-fold1"):
        shutil.copytree(sweep / name, folder / name, ignore=shutil.ignore_patterns("evaluation*", "report.html"))
    (folder / "unet-seed0-fold1/config.yaml").write_text("[")
    assert main(["report", str(folder)]) == 0
    assert "unet-seed0-fold1/config.yaml" in capsys.readouterr().err
    text = (folder / "report.html").read_text()
    assert "left out: " in text and "fusionseg evaluate" in text.split("<h2>Statistics")[1]


@NEEDS_CHROMIUM
def test_a_browser_shows_the_page(sweep: Path, tmp_path: Path) -> None:
    assert open_in_chromium(sweep / "report.html", tmp_path / "browser").std() > 10
