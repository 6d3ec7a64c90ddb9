"""Masks and scores of an oracle, computed once more from the files alone.

The oracle knows the structures by their intensity. Everything around it is the program's own: reading, preparing,
sliding windows, the way back into the file, scoring. Its masks and its scores must be those that nibabel, NumPy and
SciPy give, whatever the geometry of the file and the preparation.
"""

from __future__ import annotations

import csv
import importlib
import json
import pkgutil
import shutil
from collections.abc import Callable
from dataclasses import replace
from math import isnan, nan
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt
from torch import nn

import fusionseg.inference
from fusionseg import cli
from fusionseg.config import DataConfig
from fusionseg.inference import trained_network
from fusionseg.inference.trained_network import TrainedNetwork

SHAPE = (16, 14, 12)
AIR, TISSUE, LOW, HIGH = 0, 100, 500, 900
"""Intensities: outside the body, in it, and of the two structures."""

Array = NDArray[Any]


# -- the files -----------------------------------------------------------------------------------------------


def turned(degrees: float) -> NDArray[np.float64]:
    """A rotation about an axis that is none of the volume's."""
    axis = np.array([1.0, 2.0, 3.0]) / np.sqrt(14)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    angle = np.deg2rad(degrees)
    affine = np.eye(4)
    affine[:3, :3] += np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return affine


def spaced(x: float, y: float, z: float, origin: tuple[float, float, float] = (3, -4, 5)) -> NDArray[np.float64]:
    affine = np.diag([x, y, z, 1.0])
    affine[:3, 3] = origin
    return affine


# Affine of the volume as it is drawn; the axes along which the image and the label are stored.
GEOMETRIES: dict[str, tuple[NDArray[np.float64], str, str]] = {
    "RAS": (spaced(1, 1, 1), "RAS", "RAS"),
    "LPS": (spaced(1, 1, 1), "LPS", "LPS"),
    "exchanged": (spaced(1, 1.2, 1.5), "SAR", "SAR"),
    "oblique": (turned(25) @ spaced(1, 1, 1.4), "", ""),
    "oblique_exchanged": (turned(-20) @ spaced(1, 1.3, 1.4), "PIR", "PIR"),
    "anisotropic": (spaced(0.7, 0.7, 3), "RAS", "RAS"),
    "mirrored": (spaced(1, 1, 1.2), "LAS", "LAS"),
    "small_voxels": (spaced(0.05, 0.06, 0.05), "RPI", "RPI"),
    "large_voxels": (spaced(4, 4, 5), "ARS", "ARS"),
    "far_from_the_origin": (spaced(1, 1, 1, (-900, 1500, 700)), "RAS", "RAS"),
    "label_mirrored": (spaced(1, 1.1, 1.3), "RAS", "LPI"),
    "label_exchanged": (turned(10) @ spaced(1, 1.1, 1.3), "RAS", "IRP"),
    "qform_only": (turned(25) @ spaced(1, 1, 1.4), "", ""),
    "sform_only": (turned(25) @ spaced(1, 1, 1.4), "", ""),
    "one_4D_file": (spaced(1, 1, 1.2), "LPS", "LPS"),
    "in_microns": (spaced(900, 1000, 1200), "RAS", "RAS"),
}

PREPARATIONS: dict[str, dict[str, Any]] = {
    "none": {"orientation": None},
    "spacing": {"orientation": None, "spacing": [1.3, 1.1, 1.2]},
    "orientation": {"orientation": "LPI"},
    "crop": {"orientation": "RAS", "crop_foreground": {"threshold": 50, "margin": 1}},
    "all": {"orientation": "RAS", "spacing": [1.1, 1.1, 1.4], "crop_foreground": {"threshold": 50, "margin": 2}},
    "nonzero": {"orientation": "RAS", "intensity": {"mode": "zscore", "nonzero": True}},
}
EXACT = ("none", "orientation", "crop", "nonzero")
"""Preparations that move no voxel: the oracle's mask is the threshold itself."""


def draw(seed: int) -> tuple[Array, Array]:
    """A body in air with two structures, and a label that is not quite theirs."""
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in SHAPE), indexing="ij"), axis=-1)
    shift = np.random.default_rng(seed).uniform(-0.7, 0.7, 3)
    image = np.where((np.abs(grid - (7.5, 6.5, 5.5)) < (6.6, 5.6, 4.6)).all(-1), TISSUE, AIR)
    image[np.linalg.norm(grid - (5, 6, 5) - shift, axis=-1) < 2.9] = LOW
    image[np.linalg.norm(grid - (10.5, 7, 6) - shift, axis=-1) < 2.3] = HIGH
    label = np.zeros(SHAPE, np.uint8)
    label[np.linalg.norm(grid - (5.5, 6, 5.4) - shift, axis=-1) < 3.1] = 1
    label[np.linalg.norm(grid - (10.2, 7.6, 6) - shift, axis=-1) < 2.2] = 2
    return image.astype(np.int16), label


def stored(array: Array, affine: Array, axes: str) -> tuple[Array, Array]:
    """The same volume along other axes."""
    if not axes:
        return array, affine
    transform = ornt_transform(io_orientation(affine), axcodes2ornt(axes))
    return apply_orientation(array, transform), affine @ inv_ornt_aff(transform, array.shape)


def write(path: Path, array: Array, affine: Array, name: str) -> str:
    file = nibabel.Nifti1Image(array, affine)
    file.set_sform(affine, code=0 if name == "qform_only" else 1)
    file.set_qform(affine, code=0 if name == "sform_only" else 1)
    file.header.set_xyzt_units("micron" if name == "in_microns" else "mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(file, path)
    return str(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A datalist of all geometries, two channels each; the second is noise."""
    folder = tmp_path_factory.mktemp("geometries") / "geometries"
    entries = []
    for seed, (name, (affine, axes, label_axes)) in enumerate(GEOMETRIES.items()):
        image, label = draw(seed)
        image, image_affine = stored(image, affine, axes)
        noise = np.random.default_rng(seed).integers(60, 90, image.shape, np.int16)
        if name == "one_4D_file":
            both = np.stack([image, noise], -1)
            images: Any = write(folder / f"images/{name}.nii.gz", both, image_affine, name)
        else:
            images = [
                write(folder / f"images/{name}_{channel:04d}.nii.gz", array, image_affine, name)
                for channel, array in enumerate((image, noise))
            ]
        labels = write(folder / f"labels/{name}.nii.gz", *stored(label, affine, label_axes), name)
        entries.append({"image": images, "label": labels})
    content = {
        "training": entries,
        "labels": {"0": "background", "1": "ball1", "2": "ball2"},
        "modality": ["MR0", "MR1"],
    }
    (folder / "list.json").write_text(json.dumps(content))
    return folder


# -- the oracle ----------------------------------------------------------------------------------------------


def oracle(low: float, high: float) -> nn.Module:
    """A network that takes what is above `low` for class 1 and above `high` for class 2, in the first channel.

    Its logits 0, x - low and 2 x - low - high cross at these intensities.
    """
    network = nn.Conv3d(2, 3, 1)
    with torch.no_grad():
        network.weight.zero_()
        network.weight[1, 0], network.weight[2, 0] = 1, 2
        network.bias.copy_(torch.tensor([0, -low, -low - high]))
    return network.eval()


@pytest.fixture(scope="module", params=PREPARATIONS)
def results(
    request: pytest.FixtureRequest,
    root: Path,
    tiny_run: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Path, dict[str, list[dict[str, str]]]]:
    """The name of a preparation, the folder of the masks, and the rows of cases.csv."""
    run, masks = tiny_run(channels=2), tmp_path_factory.mktemp("masks") / "masks"
    preparation = {"intensity": {"clip": [0, 1000]}, **PREPARATIONS[request.param]}
    network = oracle(0.7, 2.9) if request.param == "nonzero" else oracle(0.3, 0.7)
    load = trained_network.load_trained
    # A module whose first import came while the function is replaced would keep the replacement for all later tests.
    for module in pkgutil.walk_packages(fusionseg.inference.__path__, "fusionseg.inference."):
        importlib.import_module(module.name)

    def load_oracle(*arguments: Any, **options: Any) -> TrainedNetwork:
        trained = load(*arguments, **options)
        data = DataConfig.model_validate({"patch": [16, 16, 16], **preparation})
        return replace(trained, model=network, config=trained.config.model_copy(update={"data": data}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained_network, "load_trained", load_oracle)
        options = ("--device", "cpu", "--overlap", "0.25")
        inputs = ("--input", str(root / "images"), "--output", str(masks))
        assert cli.main(["predict", str(run), *inputs, *options]) == 0
        assert cli.main(["evaluate", str(run), "--dataset", str(root / "list.json"), *options]) == 0
    (table,) = run.glob("evaluation_*/cases.csv")
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    shutil.rmtree(table.parent)  # the next preparation writes its own
    return request.param, masks, {name: [row for row in rows if row["case"] == name] for name in GEOMETRIES}


# -- the same once more, from the files ----------------------------------------------------------------------


def canonical(path: Path) -> tuple[Array, list[float]]:
    """A file's values and voxel sizes in mm along the axes nearest to RAS."""
    file = nibabel.as_closest_canonical(nibabel.load(path))
    unit = 1e-3 if file.header.get_xyzt_units()[0] == "micron" else 1.0
    return np.asarray(file.dataobj), [unit * size for size in np.linalg.norm(file.affine[:3, :3], axis=0)]


def dice(ours: Array, theirs: Array) -> float:
    """2 |A and B| / (|A| + |B|)."""
    total = ours.sum() + theirs.sum()
    return float(2 * (ours & theirs).sum() / total) if total else nan


def hd95(ours: Array, theirs: Array, sizes_mm: list[float]) -> float:
    """The larger of the 95th percentiles of the distances from each surface to the other.

    The surface of a mask are its voxels with a face neighbour outside it, beyond the volume too.
    """
    if not ours.any() or not theirs.any():
        return nan
    surfaces = [mask & ~binary_erosion(mask) for mask in (ours, theirs)]
    directed = [distance_transform_edt(~other, sampling=sizes_mm)[own] for own, other in (surfaces, reversed(surfaces))]
    return float(max(np.percentile(distances, 95) for distances in directed))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_scores_are_those_of_the_files(
    results: tuple[str, Path, dict[str, list[dict[str, str]]]], root: Path, name: str
) -> None:
    preparation, masks, rows = results
    mask, sizes = canonical(masks / f"{name}.nii.gz")
    label, label_sizes = canonical(root / f"labels/{name}.nii.gz")
    assert sizes == pytest.approx(label_sizes)
    assert [row["label"] for row in rows[name]] == ["ball1", "ball2"]
    for value, row in enumerate(rows[name], start=1):
        ours, theirs = mask == value, label == value
        for key, expected in (("dice", dice(ours, theirs)), ("hd95_mm", hd95(ours, theirs, sizes))):
            got = float(row[key] or nan)
            assert got == pytest.approx(expected, rel=1e-6, abs=1e-6, nan_ok=True), (preparation, key)
        assert (int(row["voxels_predicted"]), int(row["voxels_true"])) == (ours.sum(), theirs.sum())
        if name != "small_voxels" or preparation in EXACT:
            assert dice(ours, theirs) > 0.4 and not isnan(float(row["hd95_mm"]))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_masks_are_the_thresholds_of_the_files(
    results: tuple[str, Path, dict[str, list[dict[str, str]]]], root: Path, name: str
) -> None:
    preparation, masks, _ = results
    (image_file,) = (*root.glob(f"images/{name}_0000.nii.gz"), *root.glob(f"images/{name}.nii.gz"))
    image, mask = nibabel.load(image_file), nibabel.load(masks / f"{name}.nii.gz")
    assert mask.shape == image.shape[:3]
    np.testing.assert_array_equal(mask.affine, image.affine)
    values = np.asarray(image.dataobj)
    values = values[..., 0] if values.ndim == 4 else values
    expected = (values > 300).astype(np.uint8) + (values > 700)
    found = np.asarray(mask.dataobj)
    if preparation in EXACT:
        np.testing.assert_array_equal(found, expected)
    elif name != "small_voxels":  # resampled to voxels larger than the whole volume: nothing is left
        assert dice(found > 0, expected > 0) > 0.75
