"""The layout of a set of tiles: a folder for each class, or a CSV file that lists the tiles."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from fusionseg.pathology.reader import SUFFIXES
from fusionseg.utils.errors import UserError, some_of, suggest

SLIDE = "slide"
"""The column with the folder between the folder of the class and the tile."""


def tiles(path: Path, image: str = "image", label: str = "class") -> dict[str, Any]:
    """List tiles as a datalist.

    CLASS/TILE.png or CLASS/SLIDE/TILE.png below a folder; or the rows of a CSV file. A folder with nothing but tiles
    has no classes: its tiles are test cases, for a prediction.

    Args:
        path: the folder, or the CSV file.
        image: the column of the CSV file with the paths of the tiles, relative to its folder.
        label: the column of the CSV file with the classes. It becomes the column `class`.

    Raises:
        UserError: there are no tiles, or the table lacks a column.
    """
    content = _of_table(path, image, label) if path.is_file() else _of_folder(path)
    names = sorted({entry["class"] for entry in content.get("training", ()) if entry["class"]})
    if names:
        content["labels"] = {str(index): name for index, name in enumerate(names)}
    return {"channel_names": {"0": "red", "1": "green", "2": "blue"}, **content}


def _of_folder(folder: Path) -> dict[str, Any]:
    """The tiles below a folder."""
    if here := _tiles_in(folder):
        return {"test": [{"image": tile.name} for tile in here]}
    entries = []
    for group in _folders_in(folder):
        found = [{"image": str(tile.relative_to(folder)), "class": group.name} for tile in _tiles_in(group)]
        for slide in _folders_in(group):
            found += [
                {"image": str(tile.relative_to(folder)), "class": group.name, SLIDE: slide.name}
                for tile in _tiles_in(slide)
            ]
        entries += found
    if not entries:
        raise UserError(
            f"data.root={folder}: holds no tiles (expected a folder for each class with files {', '.join(SUFFIXES)}, or"
            " with a folder for each slide); correct the path, or name a CSV file that lists the tiles"
        )
    return {"training": entries}


def _of_table(path: Path, image: str, label: str) -> dict[str, Any]:
    """The tiles that a CSV file lists. A column `fold` states the folds; other columns are columns of the cases."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="", strict=True)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"data.root={path}: cannot be read as CSV ({error}); correct the file") from None
    columns = list(reader.fieldnames or ())
    if missing := [name for name in (image, label) if name not in columns]:
        key = {image: "data.layout.args.image", label: "data.layout.args.label"}
        raise UserError(
            [
                f"data.root={path}: has no column {name!r} ({suggest(name, columns)}); name the column by {key[name]}"
                for name in missing
            ]
        )
    wrong = [str(number) for number, row in enumerate(rows, start=2) if "" in row or None in row.values()]
    wrong += [str(number) for number, row in enumerate(rows, start=2) if not row[image]]
    if wrong:
        raise UserError(f"data.root={path}: lines {some_of(wrong)} have other columns than the header, or no tile")
    reserved = {image, label, "image", "label", "class", "fold", "annotated"}
    return {"training": [_entry(path, row, image, label, reserved) for row in rows]}


def _entry(path: Path, row: dict[str, str], image: str, label: str, reserved: set[str]) -> dict[str, Any]:
    entry: dict[str, Any] = {"image": row[image], "class": row[label].strip()}
    entry |= {name: value for name, value in row.items() if name not in reserved}
    if "fold" in row:
        if not row["fold"].strip().isdecimal():
            raise UserError(f"data.root={path}: the fold of {row[image]} is {row['fold']!r}; give an integer from 0")
        entry["fold"] = int(row["fold"])
    return entry


def _tiles_in(folder: Path) -> list[Path]:
    return sorted(
        entry for entry in folder.iterdir() if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".")
    )


def _folders_in(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
