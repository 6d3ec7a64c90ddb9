"""A layout of the user's own: the one of docs/extending.md lists the cases of a CSV file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import fusionseg
from fusionseg.cli import main
from fusionseg.config import load_config
from fusionseg.data.preprocessing.prepare import open_configured
from fusionseg.data.splits.split import split_dataset
from fusionseg.utils.errors import UserError

LAYOUT = (Path(__file__).parents[2] / "docs/extending.md").read_text().split("# my_layout.py\n")[1].split("```")[0]
MODEL = "model={name: unet}"


@pytest.fixture
def table(tmp_path: Path, make_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CSV file that lists four cases, with a column of sites; the working directory has the layout."""
    root = make_dataset(tmp_path / "data", cases=4)
    images, labels = (sorted((root / folder).iterdir()) for folder in ("imagesTr", "labelsTr"))
    rows = [
        f"{image.relative_to(root)},{label.relative_to(root)},site{index % 2}"
        for index, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    (root / "scans.csv").write_text("\n".join(["scan,label,site", *rows]))
    (tmp_path / "my_layout.py").write_text(LAYOUT + FAULTY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_layout", raising=False)
    return root / "scans.csv"


FAULTY = """

def none(path):
    return ["x.nii.gz"]


def broken(path):
    return {"training": [{"image": 1 / 0}]}


def without_path():
    return {}
"""


def test_layout_lists_the_cases_and_their_columns(table: Path) -> None:
    layout = "{name: my_layout:cases_of_table, args: {image: scan}}"
    keys = ("data.labels=[background,vessel]", "data.group=site", "data.folds=2")
    config = load_config(None, [f"data.root={table}", f"data.layout={layout}", MODEL, *keys])
    dataset = open_configured(config.data)
    assert (dataset.name, dataset.layout) == ("scans", "my_layout:cases_of_table")
    assert len(dataset.training) == 4 and all(case.label is not None for case in dataset.training)
    split = split_dataset(dataset, config.data, needs_labels=True)
    assert {case.group for case in split.training} != {case.group for case in split.validation}
    assert config.to_dict()["data"]["layout"]["version"].startswith("sha256:")


def test_built_in_layout_stays_a_name_in_the_dump() -> None:
    assert load_config(None, [MODEL, "data.layout=msd"]).to_dict()["data"]["layout"] == "msd"


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("my_layout:none", "returned no datalist (expected a dictionary with a list 'training', got ['x.nii.gz'])"),
        ("my_layout:broken", "ZeroDivisionError"),
        ("my_layout:cases_of_table", "KeyError"),
        ("my_layout:without_path", "takes 0 arguments by position"),
        ("my_layout:nothing", "has no 'nothing'"),
    ],
)
def test_faulty_layout_is_one_message(
    table: Path, layout: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ["check", str(table), "--layout", layout],
        ["train", f"data.root={table}", f"data.layout={layout}", MODEL, "--dry-run"],
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert expected in error and "layout" in error and "Traceback" not in error


def test_python_api_takes_a_layout(table: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        fusionseg.open_dataset(table.parent / "none.csv", layout="my_layout:cases_of_table")
