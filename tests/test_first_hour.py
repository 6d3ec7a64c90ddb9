"""The notebook of the first hour: its cells run, one after the other, in an empty folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs/first_hour.ipynb"


def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without Jupyter: a cell is Python. What it prints is what the notebook has stored, but for measured numbers."""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    space: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells, start=1):
        plt.close("all")
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), space)
        pictures = sum(output["output_type"] == "display_data" for output in cell["outputs"])
        assert len(plt.get_fignums()) == pictures, f"cell {number}: its stored pictures are not those that it makes"
    plt.close("all")
    assert space["run"].status == "completed"
    assert space["evaluation"].summary["dice"] > 0.4
    assert space["mask"].shape == space["image"].shape
    assert np.array_equal(space["probability"] > 0.5, space["mask"] == 1)
