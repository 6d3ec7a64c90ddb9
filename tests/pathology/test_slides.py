"""Tiles that are cut of slides: with cuCIM's interface, and of images in memory."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fusionseg.pathology import slides, synthetic


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """A slide of 60 x 40 pixels: glass, and tissue in the tile at 20, 0 of the grid of 20 pixels."""
    pixels = np.full((40, 60, 3), 240, np.uint8)
    pixels[0:20, 20:40] = (200, 120, 180)
    pixels[3, 25] = (1, 2, 3)
    Image.fromarray(pixels).save(tmp_path / "slide.tif")
    return tmp_path / "slide.tif"


def test_tiles_of_tissue_are_written(slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert slides.main([str(slide), "--output", str(tmp_path / "tiles"), "--size", "20"]) == 0
    assert "1 tiles" in capsys.readouterr().out
    (written,) = (tmp_path / "tiles/slide").iterdir()
    assert written.name == "slide_20_0.png" and np.asarray(Image.open(written))[3, 5].tolist() == [1, 2, 3]
    assert slides.main([str(slide), "--output", str(tmp_path / "tiles")]) == 2
    assert "is not empty" in capsys.readouterr().err


class _CuImage:
    """The part of cuCIM's interface that is used, on an image in memory; as cuCIM 26.10 answers for a pyramid."""

    def __init__(self, path: str) -> None:
        if path.endswith(".svs"):
            raise ValueError(f"Cannot load {path}!")
        self.pixels = np.asarray(Image.open(path))
        self.resolutions = {
            "level_count": 2,
            "level_dimensions": ((60, 40), (30, 20)),
            "level_downsamples": (1.0, 2.0),
        }

    def read_region(self, location: tuple[int, int], size: tuple[int, int], level: int) -> Any:
        step = 2**level
        x, y = location
        return self.pixels[y : y + step * size[1] : step, x : x + step * size[0] : step]


def test_cucim_reads_the_levels(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("cucim")
    module.CuImage, module.__spec__ = _CuImage, ModuleSpec("cucim", None)
    monkeypatch.setitem(sys.modules, "cucim", module)
    assert slides.main([str(slide), "--output", str(tmp_path / "tiles"), "--size", "10", "--level", "1"]) == 0
    assert [path.name for path in (tmp_path / "tiles/slide").iterdir()] == ["slide_10_0.png"]
    assert slides.main([str(slide), "--output", str(tmp_path / "more"), "--level", "2"]) == 2
    (tmp_path / "text.svs").write_text("no slide")
    assert slides.main([str(tmp_path / "text.svs"), "--output", str(tmp_path / "more")]) == 2
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["none.svs"], "no such file"),
        (["slide.tif", "--level", "1"], "install cuCIM"),
        (["text.svs"], "cannot be read as an image"),
        (["slide.tif", "--tissue", "2"], "--tissue from 0 to 1"),
    ],
)
def test_faults_are_one_message(
    slide: Path, words: list[str], expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(slide.parent)
    Path("text.svs").write_text("no slide")
    assert slides.main([*words, "--output", "tiles"]) == 2
    assert expected in capsys.readouterr().err and not Path("tiles").exists()


def test_synthetic_tiles_are_repeatable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--slides", "1", "--tiles", "2", "--size", "8"]
    for name in ("a", "b"):
        assert synthetic.main([str(tmp_path / name), *words]) == 0
    files = [sorted(path for path in (tmp_path / name).rglob("*.png")) for name in ("a", "b")]
    assert len(files[0]) == 4 and [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]
    assert synthetic.main([str(tmp_path / "a"), *words]) == 2
    assert "is not empty" in capsys.readouterr().err
