"""One rule for all commands: what check calls an error, prepare, evaluate and predict refuse, and nothing else."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from fusionseg import cli
from fusionseg.config import RunConfig, dump_config

SHAPE = (12, 11, 10)
AFFINE = np.diag([1.0, 1.2, 1.5, 1.0])
AFFINE[:3, 3] = (-20, 10, 5)


@dataclass
class Files:
    """Image and label of a case, to be damaged."""

    image: Path
    label: Path


def image() -> NDArray[np.int16]:
    return np.random.default_rng(0).integers(0, 1000, SHAPE, np.int16)


def label() -> NDArray[np.uint8]:
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:6, 2:7, 2:5], mask[6:9, 4:9, 5:9] = 1, 2
    return mask


def write(path: Path, array: NDArray[Any], affine: NDArray[np.float64] = AFFINE) -> None:
    nibabel.save(nibabel.Nifti1Image(array, affine, dtype=array.dtype), path)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Change the header of a file, and nothing else."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    header = nibabel.Nifti1Header(bytes(content[:348]), check=False)
    change(header)
    content[:348] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(content)))


def both(change: Callable[[Any], Any]) -> Callable[[Files], None]:
    return lambda files: (edit(files.image, change), edit(files.label, change))[0]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip_checksum(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-8] ^= 255
    path.write_bytes(content)


def with_spot(array: NDArray[Any], value: float) -> NDArray[Any]:
    array[0, 0, 0] = value
    return array


def moved(voxels: float) -> NDArray[np.float64]:
    affine = AFFINE.copy()
    affine[0, 3] += voxels
    return affine


def flipped() -> NDArray[np.float64]:
    affine = AFFINE @ np.diag([-1.0, 1, -1, 1])
    affine[[0, 2], 3] += ((SHAPE[0] - 1) * AFFINE[0, 0], (SHAPE[2] - 1) * AFFINE[2, 2])
    return affine


def scale(factor: float, unit: int = 2) -> Callable[[Any], None]:
    def change(header: Any) -> None:
        header["xyzt_units"] = unit
        header["pixdim"][1:4] *= factor
        for row in ("srow_x", "srow_y", "srow_z"):
            header[row] = header[row] * factor

    return change


RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])

# Which file is at fault: "image", "label", or "" where nothing is wrong; and what is done to the two.
FAULTS: dict[str, tuple[str, Callable[[Files], Any]]] = {
    "clean": ("", lambda f: None),
    "NaN": ("image", lambda f: write(f.image, with_spot(image().astype(np.float32), np.nan))),
    "infinity": ("image", lambda f: write(f.image, with_spot(image().astype(np.float32), np.inf))),
    "beyond_float32": ("image", lambda f: write(f.image, with_spot(image().astype(np.float64), 1e300))),
    "constant": ("image", lambda f: write(f.image, np.full(SHAPE, 7, np.int16))),
    "complex": ("image", lambda f: write(f.image, (image() + 1j * image()).astype(np.complex64))),
    "RGB": ("image", lambda f: write(f.image, np.zeros(SHAPE, RGB))),
    "2D": ("image", lambda f: write(f.image, image()[0])),
    "5D": ("image", lambda f: write(f.image, np.stack([image()] * 2, -1)[:, :, :, None])),
    "two_channels": ("image", lambda f: write(f.image, np.stack([image()] * 2, -1))),
    "one_channel_4D": ("", lambda f: write(f.image, image()[..., None])),
    "cut": ("image", lambda f: cut(f.image)),
    "checksum": ("image", lambda f: flip_checksum(f.image)),
    "bytes_behind": ("image", lambda f: f.image.write_bytes(f.image.read_bytes() + b"more")),
    "zero_spacing": ("image", lambda f: edit(f.image, lambda h: h["pixdim"].__setitem__(3, 0))),
    "negative_spacing": ("image", lambda f: edit(f.image, lambda h: h["pixdim"].__setitem__(3, -1))),
    "absurd_spacing": ("image", both(scale(2000))),
    "tiny_spacing": ("image", both(scale(1e-8))),
    "micrometres": ("", both(scale(1000, unit=3))),
    "singular": ("image", lambda f: edit(f.image, lambda h: h["srow_z"].fill(0))),
    "affine_NaN": ("image", lambda f: edit(f.image, lambda h: h["srow_z"].fill(np.nan))),
    "other_pixdim": ("", lambda f: edit(f.image, lambda h: h["pixdim"].__setitem__(3, 4))),
    "int64": ("", lambda f: write(f.image, image().astype(np.int64))),
    "label_far_away": ("label", lambda f: write(f.label, label(), moved(150))),
    "label_half_a_voxel_away": ("label", lambda f: write(f.label, label(), moved(0.5))),
    "label_close": ("", lambda f: write(f.label, label(), moved(0.05))),
    "label_rounded": ("", lambda f: write(f.label, label(), AFFINE + 1e-6 * np.eye(4, k=1))),
    "label_without_affine": ("label", lambda f: write(f.label, label(), np.eye(4))),
    "label_flipped": ("", lambda f: write(f.label, label()[::-1, :, ::-1].copy(), flipped())),
    "label_axes_exchanged": ("", lambda f: write(f.label, label().transpose(2, 0, 1), AFFINE[:, [2, 0, 1, 3]])),
    "label_axes_exchanged_alone": ("label", lambda f: write(f.label, label().transpose(2, 0, 1))),
    "label_of_other_shape": ("label", lambda f: write(f.label, label()[:-1])),
    "label_fraction": ("label", lambda f: write(f.label, label() * np.float32(0.99999))),
    "label_float": ("", lambda f: write(f.label, label().astype(np.float64))),
    "label_NaN": ("label", lambda f: write(f.label, with_spot(label().astype(np.float32), np.nan))),
    "label_negative": ("label", lambda f: write(f.label, with_spot(label().astype(np.int16), -1))),
    "label_3": ("label", lambda f: write(f.label, with_spot(label(), 3))),
    "label_255": ("label", lambda f: write(f.label, with_spot(label(), 255))),
    "label_256": ("label", lambda f: write(f.label, with_spot(label().astype(np.int16), 256))),
    "label_one_hot": ("label", lambda f: write(f.label, np.stack([label() == k for k in range(3)], -1).astype("u1"))),
    "label_trailing_axis": ("", lambda f: write(f.label, label()[..., None])),
    "label_complex": ("label", lambda f: write(f.label, label().astype(np.complex64))),
    "label_cut": ("label", lambda f: cut(f.label)),
    "label_empty": ("", lambda f: write(f.label, np.zeros(SHAPE, np.uint8))),
}


@dataclass
class Outcome:
    """Of every command: the cases that it refuses, with what it says; and its exit status."""

    refused: dict[str, dict[str, Any]]
    status: dict[str, int]


@pytest.fixture(scope="module")
def outcome(
    tmp_path_factory: pytest.TempPathFactory, tiny_run: Callable[..., Path], tiny_config: Callable[..., RunConfig]
) -> Outcome:
    """All faults in one data set, a case each, given to every command."""
    folder = tmp_path_factory.mktemp("faults")
    root, run = folder / "Task94_faults", folder / "run"
    shutil.copytree(tiny_run(), run)  # other tests expect the run without an evaluation
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True)
    entries = []
    for name, (_, do) in FAULTS.items():
        files = Files(root / f"imagesTr/{name}.nii.gz", root / f"labelsTr/{name}.nii.gz")
        write(files.image, image())
        write(files.label, label())
        do(files)
        entries.append({"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"})
    labels = {"0": "background", "1": "ball1", "2": "ball2"}
    content = {"modality": {"0": "MR0"}, "labels": labels, "training": entries, "numTraining": len(entries)}
    (root / "dataset.json").write_text(json.dumps(content))
    config = folder / "config.yaml"
    config.write_text(dump_config(tiny_config(root, folder / "out", data={"folds": 2})))

    report = folder / "report.json"
    masks = folder / "masks"
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("builtins.print", lambda *text, **_: said.append(" ".join(map(str, text))))
        status = {
            "check": cli.main(["check", str(root), "--workers", "1", "--json", str(report)]),
            "prepare": cli.main(["prepare", "--config", str(config)]),
            "evaluate": cli.main(["evaluate", str(run), "--dataset", str(root), "--device", "cpu"]),
            "predict": cli.main(
                ["predict", str(run), "--input", str(root / "imagesTr"), "--output", str(masks), "--device", "cpu"]
            ),
        }
    checked: dict[str, list[str]] = {}
    for problem in json.loads(report.read_text())["errors"]:
        checked.setdefault(problem["case"], []).append(problem["message"])
    lines = "\n".join(said).splitlines()
    prepared = {name: line for line in lines for name in FAULTS if line.startswith(f"  {name}: ")}
    (evaluation,) = run.glob("evaluation*")
    evaluated = json.loads((evaluation / "summary.json").read_text())["failed"]
    predicted = {name: ["no mask"] for name in FAULTS if not (masks / f"{name}.nii.gz").exists()}
    return Outcome({"check": checked, "prepare": prepared, "evaluate": evaluated, "predict": predicted}, status)


@pytest.mark.parametrize("fault", FAULTS)
def test_all_commands_refuse_the_same_cases(outcome: Outcome, fault: str) -> None:
    guilty = FAULTS[fault][0]
    for command, refused in outcome.refused.items():
        wanted = guilty == "image" if command == "predict" else bool(guilty)
        assert (fault in refused) == wanted, f"{command}: {refused.get(fault)}"


@pytest.mark.parametrize("fault", [name for name, (guilty, _) in FAULTS.items() if guilty])
def test_all_commands_use_the_same_words(outcome: Outcome, fault: str) -> None:
    for message in outcome.refused["check"][fault]:
        assert message in outcome.refused["prepare"][fault]
    evaluated = outcome.refused["evaluate"][fault]
    assert any(message[:30] in evaluated for message in outcome.refused["check"][fault]), evaluated


def test_one_bad_case_is_no_reason_to_give_up(outcome: Outcome) -> None:
    assert outcome.status == {"check": 1, "prepare": 1, "evaluate": 1, "predict": 1}
