"""The JSON file of a data set: its content, the layout that it belongs to, and the folder of its paths.

The layouts are that of the Medical Segmentation Decathlon (MSD), the raw layout of nnU-Net (versions 1 and 2), and a
MONAI datalist. `fusionseg.data.formats.dataset.open_dataset` combines the parts.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fusionseg.data.formats.case import CHANNEL, Case
from fusionseg.data.formats.ignored_entries import LISTS
from fusionseg.data.formats.layouts.folders import is_folder_layout
from fusionseg.data.formats.missing_files import MAX_LISTED
from fusionseg.data.formats.readers import Readers
from fusionseg.utils.errors import UserError, some_of
from fusionseg.utils.files import user_path

Layout = Literal["msd", "nnunet", "datalist", "folders"]

LAYOUTS = ("auto", "msd", "nnunet", "datalist", "folders")
SPLITS_FILE = "splits_final.json"
"""nnU-Net's file of folds, which may lie beside the JSON file of a data set."""
_NOT_A_DATALIST = ("dataset.json", SPLITS_FILE)
READ_KEYS = ("image", "images", "label", "fold", "annotated")
"""Keys of an entry that are read for every data set. The others are columns."""


def find_json(root: Path, layout: str, readers: Readers) -> Path:
    """Find the JSON file of a data set.

    Args:
        root: the folder of the data set, or the file itself.
        layout: as in `data.layout`.
        readers: of the data set.

    Returns:
        The file. It need not exist for a data set with a folder for each case.

    Raises:
        UserError: there is no such file, or there are several.
    """
    wanted = (
        "a folder with dataset.json (MSD or nnU-Net raw), a folder with one datalist .json, the datalist's .json"
        " file, or a folder with a folder for each case"
    )
    if root.is_file():
        if root.suffix.lower() != ".json":
            raise UserError(f"data.root={root}: is a file, but not a .json file; expected {wanted}")
        return root
    if not root.is_dir():
        raise UserError(f"data.root={root}: does not exist; expected {wanted}")
    dataset_json = root / "dataset.json"
    if layout == "folders":
        return dataset_json
    lists = sorted(f for f in root.glob("*.json") if f.name not in _NOT_A_DATALIST and f.name[0] != ".")
    if layout == "datalist" and len(lists) == 1:
        return lists[0]
    if dataset_json.is_file() and (layout != "datalist" or not lists):
        return dataset_json
    if layout in ("msd", "nnunet"):
        raise UserError(f"{dataset_json}: missing, the {layout} layout needs it; check data.root and data.layout")
    if len(lists) == 1:
        return lists[0]
    if lists:
        raise UserError(
            f"data.root={root}: several datalists ({', '.join(f.name for f in lists[:MAX_LISTED])}); set "
            "data.root to the one to use"
        )
    if layout == "auto" and is_folder_layout(root, readers):
        return dataset_json
    if readers.reads_folder(root):
        raise UserError(
            f"data.root={root}: is one DICOM series, not a data set (expected {wanted}); name the folder above it that"
            " has a folder for each case, or a datalist"
        )
    if files := readers.image_files(root):
        named = some_of([file.name for file in files])
        raise UserError(
            f"data.root={root}: holds images ({named}) and no list (expected {wanted}); put the images of a case into"
            " a folder of its own, or images and labels into the folders images and labels, or write a datalist"
        )
    raise UserError(f"data.root={root}: holds no .json file; expected {wanted}")


def read_json(source: Path) -> dict[str, Any]:
    """Read the JSON file of a data set.

    Args:
        source: the file.

    Returns:
        Its content; empty if a data set with a folder for each case has no such file.

    Raises:
        UserError: the file cannot be read, is not JSON, or names a key twice in one object.
    """
    if not os.path.lexists(source):
        return {}
    try:
        content = json.loads(source.read_text(encoding="utf-8-sig"), object_pairs_hook=partial(_each_once, source))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{source}: line {error.lineno}, column {error.colno}: {error.msg}; correct the JSON"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror}); check its permissions") from error
    if not isinstance(content, dict):
        raise UserError(f"{source}: holds a {type(content).__name__}, not an object with training, labels, ...")
    return content


def _each_once(source: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of the JSON. A key that appears twice is refused: JSON would silently keep the last."""
    doubled = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if doubled:
        raise UserError(
            f"{source}: {', '.join(map(repr, doubled))} appears several times in one object, and only the last would"
            " be read; give each key once"
        )
    return dict(pairs)


def recognise_layout(source: Path, content: dict[str, Any], readers: Readers) -> Layout:
    """Tell the layout of a data set from its JSON and its file names.

    Args:
        source: the JSON file.
        content: of the file.
        readers: of the data set.
    """
    if "channel_names" in content or "file_ending" in content:
        return "nnunet"
    folder = source.parent / "imagesTr"
    unlisted = source.name == "dataset.json" and not any(key in content for key in LISTS)
    if unlisted and (not content or not folder.is_dir()) and is_folder_layout(source.parent, readers):
        return "folders"
    listed = [entry for entry in as_list(content.get("training")) if isinstance(entry, dict)]
    if source.name != "dataset.json" or "validation" in content or any("fold" in entry for entry in listed):
        return "datalist"
    # nnU-Net's first version lists x.nii.gz and stores x_0000.nii.gz. MSD cases may have such numbers too, but their
    # listed names exist.
    files = readers.image_files(folder) if folder.is_dir() else []
    numbered = bool(files) and all(CHANNEL.fullmatch(readers.stem(file)) for file in files)
    images = [image for entry in listed for image in as_list(entry.get("image"))]
    exists = any(isinstance(image, str) and (source.parent / image).exists() for image in images)
    return "nnunet" if numbered and not exists else "msd"


def as_list(value: Any) -> list[Any]:
    """A list as it is, None as an empty list, and any other value as a list of one."""
    return value if isinstance(value, list) else [] if value is None else [value]


def base_folder(source: Path, content: dict[str, Any], layout: Layout, given: str | None) -> Path:
    """The folder at which the relative paths of a list start.

    Args:
        source: the JSON file.
        content: of the file. Its key `base_dir` is a path, which starts at the folder of the file if it is relative.
        layout: of the data set.
        given: `data.base_dir`, which takes precedence; None for none.

    Returns:
        The folder of the JSON file, unless `given` or the file states another one.

    Raises:
        UserError: there is no such folder, or the layout has no list of paths.
    """
    stated = content.get("base_dir")
    if given is None and stated is None:
        return source.parent
    where = "data.base_dir" if given is not None else f"{source}: base_dir"
    if given is None and not (isinstance(stated, str) and stated):
        raise UserError(f"{where}: expected the path of a folder, got {stated!r}; correct it")
    if layout == "nnunet":
        raise UserError(
            f"{where}: the nnU-Net layout has its files beside dataset.json, in imagesTr and labelsTr; remove it"
        )
    folder = user_path(given).absolute() if given is not None else (source.parent / user_path(str(stated))).resolve()
    if not folder.is_dir():
        raise UserError(f"{where}: {folder}: is no folder; give the folder at which the paths of {source.name} start")
    return folder


def annotated_names(entry: Mapping[str, Any], where: str, problems: list[str]) -> tuple[str, ...] | None:
    """The names of the classes that a case annotates, if its entry in a JSON states them.

    Args:
        entry: of the case.
        where: the entry, for the message.
        problems: gets a faulty entry.
    """
    stated = entry.get("annotated")
    names = tuple(as_list(stated))
    if not all(isinstance(name, str) for name in names):
        problems.append(f'{where}: "annotated" is {stated!r}; list the names of the classes that the case annotates')
        return None
    return None if stated is None else names


def unique_names(
    source: Path, base: Path, training: list[Case], testing: list[Case], faults: list[str]
) -> tuple[list[Case], list[Case]]:
    """Rename cases of one name by their folders (a/image.nii.gz, b/image.nii.gz), where these differ.

    Args:
        source: the JSON file.
        base: the folder at which the listed paths start.
        training: cases.
        testing: cases.
        faults: gets the names that stay doubled.

    Returns:
        The training and the test cases.
    """
    folders: dict[str, set[Path]] = defaultdict(set)
    for case in training + testing:
        folders[case.name].add(case.images[0].parent)

    def with_folder(case: Case) -> Case:
        folder = case.images[0].parent
        within = folder.is_relative_to(base)
        inside = folder.relative_to(base) if within else Path(folder.name)
        return replace(case, name="_".join([*inside.parts, case.name])) if len(folders[case.name]) > 1 else case

    training, testing = [with_folder(case) for case in training], [with_folder(case) for case in testing]
    for name, count in Counter(case.name for case in training + testing).items():
        if count > 1:
            files = sorted({str(c.images[0]) for c in training + testing if c.name == name})
            remedy = "rename or remove one"
            if len(files) == 1:
                remedy = (
                    "list it once (to train and validate on the same cases on purpose, list them under training without"
                    " folds, and set data.folds=1)"
                )
            faults.append(f"{source}: {count} cases are named {name} ({', '.join(files[:3])}); {remedy}")
    return training, testing
