"""Tiles on disk: the layout of folders and tables, and the reader."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusionseg.data.formats.image_file import VolumeError
from fusionseg.pathology import layout
from fusionseg.pathology.reader import TileReader
from fusionseg.utils.errors import UserError


def test_folders_give_classes_and_slides(tiles: Path) -> None:
    content = layout.tiles(tiles)
    assert content["labels"] == {"0": "normal", "1": "tumour"} and len(content["training"]) == 16
    assert content["training"][0] == {
        "image": "normal/slide000/normal_000_000.png",
        "class": "normal",
        "slide": "slide000",
    }


def test_folder_of_tiles_alone_has_no_classes(tiles: Path) -> None:
    content = layout.tiles(tiles / "normal/slide000")
    assert [entry["image"] for entry in content["test"]] == [f"normal_000_{index:03d}.png" for index in range(4)]
    assert not {"training", "labels"} & content.keys()


def write_table(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_table_gives_classes_folds_and_columns(tmp_path: Path) -> None:
    rows = [["file", "label", "site", "fold"], ["x.png", "benign", "A", "0"], ["y.png", "malignant", "B", "1"]]
    content = layout.tiles(write_table(tmp_path / "tiles.csv", rows), image="file", label="label")
    assert content["training"][1] == {"image": "y.png", "class": "malignant", "site": "B", "fold": 1}
    assert content["labels"] == {"0": "benign", "1": "malignant"}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([["image", "label"], ["x.png", "a"]], "has no column 'class'"),
        ([["image", "class"], ["x.png", "a", "more"]], "lines 2"),
        ([["image", "class"], ["", "a"]], "lines 2"),
        ([["image", "class", "fold"], ["x.png", "a", "first"]], "give an integer from 0"),
    ],
)
def test_faulty_table_is_refused(tmp_path: Path, rows: list[list[str]], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        layout.tiles(write_table(tmp_path / "tiles.csv", rows))


def test_folder_without_tiles_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no tiles"):
        layout.tiles(tmp_path)


def test_reader_keeps_channels_and_axes(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)  # four rows of six pixels
    pixels[1, 5] = (10, 20, 30)
    for mode, suffix in (("RGB", "png"), ("RGBA", "png"), ("RGB", "tif")):
        path = tmp_path / f"{mode}.{suffix}"
        Image.fromarray(pixels).convert(mode).save(path)
        voxels, affine = TileReader(pixel_um=0.25).read(path)
        assert voxels.shape == (3, 6, 4, 1) == TileReader().read_geometry(path)[0]
        assert voxels[:, 5, 1, 0].tolist() == [10, 20, 30] and affine[0, 0] == 0.00025


def test_reader_refuses_other_images(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "grey.png")
    Image.new("RGBA", (4, 4), (1, 2, 3, 4)).save(tmp_path / "clear.png")
    (tmp_path / "text.png").write_text("no image")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    noise.save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "stack.tif", save_all=True, append_images=frames[1:])
    expected = {"grey": "mode L", "clear": "transparent", "text": "no image", "cut": "decoded", "stack": "2 images"}
    for path in tmp_path.iterdir():
        with pytest.raises(VolumeError, match=expected[path.stem]):
            TileReader().read(path)


def test_reader_refuses_a_pixel_without_size() -> None:
    with pytest.raises(ValueError, match="pixel_um"):
        TileReader(pixel_um=0)
