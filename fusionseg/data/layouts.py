"""What the JSON of a data set says: where its files lie, and how its channels and labels are called.

The layouts are the Medical Segmentation Decathlon's (MSD), nnU-Net's raw one (versions 1 and 2), and a MONAI
datalist. `fusionseg.data.dataset.open_dataset` puts the parts together.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from fusionseg.data.case import CHANNEL, IMAGE_SUFFIXES, Case, image_files, stem, suffix
from fusionseg.data.unread import hidden_entries
from fusionseg.errors import UserError

Layout = Literal["msd", "nnunet", "datalist"]

LAYOUTS = ("auto", "msd", "nnunet", "datalist")
MAX_LISTED = 20
MAX_LABELS = 256
"""Label values are stored in one byte."""

_LABELS_FIX = "name the values 0, 1, ... with data.labels=[background,tumour]"


def find_json(root: Path, layout: str) -> Path:
    wanted = (
        "a folder with dataset.json (MSD or nnU-Net raw), a folder with one datalist .json, or the "
        "datalist's .json file"
    )
    if root.is_file():
        if root.suffix != ".json":
            raise UserError(f"data.root={root}: is a file, but no .json; expected {wanted}")
        return root
    if not root.is_dir():
        raise UserError(f"data.root={root}: does not exist; expected {wanted}")
    dataset_json = root / "dataset.json"
    lists = sorted(f for f in root.glob("*.json") if f.name != "dataset.json" and not f.name.startswith("."))
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
    raise UserError(f"data.root={root}: holds no .json file; expected {wanted}")


def read_json(source: Path) -> dict[str, Any]:
    try:
        content = json.loads(source.read_text(encoding="utf-8-sig"))
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


def recognise_layout(source: Path, content: dict[str, Any]) -> Layout:
    if "channel_names" in content or "file_ending" in content:
        return "nnunet"
    listed = [entry for entry in _as_list(content.get("training")) if isinstance(entry, dict)]
    if source.name != "dataset.json" or "validation" in content or any("fold" in entry for entry in listed):
        return "datalist"
    # nnU-Net's first version lists x.nii.gz and stores x_0000.nii.gz. Cases may be numbered so in MSD too:
    # there the listed names exist.
    folder = source.parent / "imagesTr"
    files = image_files(folder) if folder.is_dir() else []
    numbered = bool(files) and all(CHANNEL.fullmatch(stem(file)) for file in files)
    images = [image for entry in listed for image in _as_list(entry.get("image"))]
    exists = any(isinstance(image, str) and (source.parent / image).is_file() for image in images)
    return "nnunet" if numbered and not exists else "msd"


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def listed_cases(
    source: Path, content: dict[str, Any], problems: list[str], notes: list[str]
) -> tuple[list[Case], list[Case]]:
    if not any(key in content for key in ("training", "validation", "test", "testing")):
        raise UserError(f'{source}: has no "training" list; add {{"training": [{{"image": ..., "label": ...}}]}}')
    hidden: list[str] = []
    training, validation = (_entries(source, key, content, problems, hidden) for key in ("training", "validation"))
    testing = [case for key in ("test", "testing") for case in _entries(source, key, content, problems, hidden)]
    notes += hidden_entries(source, hidden)
    stated = sum(case.fold is not None for case in training)
    if "validation" in content:
        if stated:
            problems.append(f"{source}: has a validation list and states folds in training; keep one of the two")
        training = [replace(case, fold=1) for case in training]
        training += [replace(case, fold=0) for case in validation]
    elif 0 < stated < len(training):
        lacking = [case.name for case in training if case.fold is None]
        problems.append(
            f"{source}: {len(lacking)} of {len(training)} training cases state no fold "
            f"({', '.join(lacking[:5])}); state it for all or for none"
        )
    return training, testing


def _entries(source: Path, key: str, content: dict[str, Any], problems: list[str], hidden: list[str]) -> list[Case]:
    if not isinstance(content.get(key, []), list):
        problems.append(f'{source}: {key} is no list; write [{{"image": ..., "label": ...}}, ...]')
        return []
    cases = []
    for i, entry in enumerate(content.get(key, [])):
        entry = entry if isinstance(entry, dict) else {"image": entry}
        images, label, fold = _as_list(entry.get("image")), entry.get("label") or None, entry.get("fold")
        if not images or not all(isinstance(image, str) and image for image in images):
            problems.append(f'{source}: {key}[{i}] has no "image"; give a path or a list of paths, one per channel')
        elif label is not None and not isinstance(label, str):
            problems.append(f'{source}: {key}[{i}]: "label" is no path; one label file per case is supported')
        elif fold is not None and (not isinstance(fold, int) or isinstance(fold, bool) or fold < 0):
            problems.append(f'{source}: {key}[{i}]: "fold" is {fold!r}; give a whole number from 0')
        else:
            paths = tuple(_listed_path(source.parent, image) for image in images)
            if paths[0].name.startswith("."):
                hidden.append(paths[0].name)
                continue
            cases.append(Case(_joint_name(paths), paths, _listed_path(source.parent, label) if label else None, fold))
    return cases


def _listed_path(folder: Path, text: str) -> Path:
    """The path that a list means; one that was written on Windows has backslashes."""
    path = folder / text
    return folder / text.replace("\\", "/") if "\\" in text and not path.exists() else path


def _joint_name(images: Sequence[Path]) -> str:
    """Name of a case from its channel files: x for x_0000 and x_0001, or for x_t1 and x_t2."""
    if len(images) == 1:
        return stem(images[0])
    parts = [stem(image).split("_") for image in images]
    shared = 0
    while len({tuple(p[: shared + 1]) for p in parts}) == 1 and shared < min(map(len, parts)):
        shared += 1
    return "_".join(parts[0][:shared]) or images[0].parent.name


def unique_names(
    source: Path, training: list[Case], testing: list[Case], faults: list[str]
) -> tuple[list[Case], list[Case]]:
    """Tell cases of one name apart by their folders (a/image.nii.gz, b/image.nii.gz), where they differ."""
    folders: dict[str, set[Path]] = defaultdict(set)
    for case in training + testing:
        folders[case.name].add(case.images[0].parent)

    def with_folder(case: Case) -> Case:
        folder = case.images[0].parent
        within = folder.is_relative_to(source.parent)
        inside = folder.relative_to(source.parent) if within else Path(folder.name)
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


def nnunet_cases(
    source: Path, content: dict[str, Any], channels: int, problems: list[str]
) -> tuple[list[Case], list[Case]]:
    ending = content.get("file_ending", ".nii.gz")
    if ending not in IMAGE_SUFFIXES:
        raise UserError(
            f"{source}: file_ending is {ending!r}; only {' and '.join(IMAGE_SUFFIXES)} are read, convert the images"
        )
    root = source.parent
    if isinstance(content.get("dataset"), dict):  # version 2 may list its files instead of using imagesTr
        training = []
        for name, entry in content["dataset"].items():
            entry = entry if isinstance(entry, dict) else {}
            images, label = _as_list(entry.get("images")), entry.get("label")
            if not images:
                problems.append(f'{source}: dataset.{name} has no "images"; list its channels\' files')
                continue
            training.append(Case(name, tuple(root / i for i in images), root / label if label else None))
    elif not (root / "imagesTr").is_dir():
        raise UserError(
            f"{root / 'imagesTr'}: no such folder; the nnU-Net layout needs it, check data.root and data.layout"
        )
    else:
        training = _nnunet_folder(root, "Tr", ending, channels, problems)
    testing = _nnunet_folder(root, "Ts", ending, channels, problems) if (root / "imagesTs").is_dir() else []
    return training, testing


def _nnunet_folder(root: Path, split: str, ending: str, channels: int, problems: list[str]) -> list[Case]:
    images, labels = root / f"images{split}", root / f"labels{split}"
    found: dict[str, set[int]] = defaultdict(set)
    for file in image_files(images):
        match = CHANNEL.fullmatch(stem(file))
        if not match:
            problems.append(f"{file}: has no channel number; nnU-Net names it {stem(file)}_0000{ending}, rename it")
        elif suffix(file) != ending:
            problems.append(f"{file}: file_ending is {ending}; convert the file, or correct dataset.json")
        else:
            found[match[1]].add(int(match[2]))
    annotated = set()
    for file in image_files(labels) if labels.is_dir() else []:
        if suffix(file) != ending:
            problems.append(f"{file}: file_ending is {ending}; convert the file, or correct dataset.json")
        annotated.add(stem(file))
    cases = []
    # A label without image is a case too: its image is then reported as missing.
    for name in sorted(found.keys() | annotated):
        numbers = sorted(found[name] | set(range(channels or 1)))
        files = tuple(images / f"{name}_{i:04d}{ending}" for i in numbers)
        cases.append(Case(name, files, labels / f"{name}{ending}" if name in annotated else None))
    return cases


def channel_names(stated: Any, source: Path, problems: list[str]) -> tuple[str, ...]:
    """Names in order; empty where the file names none."""
    if stated is None or isinstance(stated, (str, list)):
        return tuple(map(str, _as_list(stated)))
    names = _numbered(stated) if isinstance(stated, dict) else None
    if names is None or sorted(names) != list(range(len(names))):
        problems.append(f'{source}: channels are {stated!r}; write them as {{"0": "CT", "1": "PET"}}')
        return ()
    return tuple(names[i] for i in range(len(names)))


def _numbered(stated: dict[Any, Any]) -> dict[int, str] | None:
    """{"0": "a"} (MSD) or {"a": 0} (nnU-Net) as {0: "a"}; None for anything else or a value named twice."""

    def whole(value: Any) -> bool:
        return type(value) is int or (isinstance(value, str) and value.isdecimal())

    pairs = list(stated.items())
    if not all(whole(value) and isinstance(name, str) for value, name in pairs):
        pairs = [(value, name) for name, value in pairs]
    if not all(whole(value) and isinstance(name, str) for value, name in pairs):
        return None
    numbered = {int(value): name for value, name in pairs}
    return numbered if len(numbered) == len(pairs) else None


def label_names(
    stated: Any, given: Sequence[str] | None, source: Path, training: Sequence[Case], problems: list[str]
) -> dict[int, str]:
    unlabelled = all(case.label is None for case in training)
    where = "data.labels" if given is not None else f"{source}: labels"
    if given is not None:
        stated = list(given)
    if not stated and given is None:
        if not unlabelled:
            problems.append(f"{source}: names no labels; {_LABELS_FIX}")
        return {0: "background"}  # images alone are enough for pre-training
    if isinstance(stated, dict) and any(isinstance(value, list) for value in stated.values()):
        regions = ", ".join(str(name) for name, value in stated.items() if isinstance(value, list))
        problems.append(
            f"{where}: nnU-Net regions (lists of values: {regions}) are not supported; give each value a "
            "name of its own, and evaluate the regions from the classes"
        )
        return {}
    names = dict(enumerate(map(str, stated))) if isinstance(stated, list) else None
    if isinstance(stated, dict):
        names = _numbered(stated)
    if names is None:
        problems.append(
            f'{where} is {stated!r}; write {{"0": "background", "1": "tumour"}}, each value once, or {_LABELS_FIX}'
        )
        return {}
    if sorted(names) != list(range(len(names))):
        problems.append(
            f"{where}: the values {sorted(names)} are not consecutive from 0; renumber the label files and "
            "the names to 0, 1, 2, ..."
        )
    elif len(names) < 2 and not unlabelled:
        problems.append(f"{where}: there is no class beside the background; {_LABELS_FIX}")
    if len(names) > MAX_LABELS:
        problems.append(
            f"{where}: there are {len(names)} labels, and {MAX_LABELS} are the most (one byte a voxel); merge classes,"
            " or split the task in two data sets"
        )
    if "ignore" in names.values() and given is None:
        problems.append(f"{where}: nnU-Net's ignore label is not supported; relabel those voxels, and remove the name")
    doubled = [name for name, count in Counter(names.values()).items() if count > 1]
    if doubled:
        problems.append(f"{where}: {', '.join(doubled)} names several values; give each its own name")
    return dict(sorted(names.items()))
