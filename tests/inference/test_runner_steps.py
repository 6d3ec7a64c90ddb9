"""Steps of the runner without torch, against the code of `predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices

from fusionseg.config import DataConfig
from fusionseg.data.preprocessing.volume import Volume, load_volume
from fusionseg.export.contract import input_settings
from fusionseg.export.standalone import run_onnx
from fusionseg.inference.streaming.chunks import summed_probabilities
from fusionseg.inference.streaming.grid_map import grid_map
from fusionseg.inference.streaming.member_volume import original_to_prepared

SHAPE = (17, 14, 12)


def affine(spacing: tuple[float, float, float], degrees: float = 0, signs: tuple[int, int, int] = (1, 1, 1)) -> Any:
    """Rotated about an axis that is none of the volume's, with an origin of its own."""
    axis = np.array([1.0, 2.0, 3.0]) / np.sqrt(14)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    angle = np.deg2rad(degrees)
    made = np.eye(4)
    made[:3, :3] += np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    made[:3, :3] = made[:3, :3] @ np.diag(np.array(spacing) * signs)
    made[:3, 3] = 3, -40, 50
    return made


def exchanged(matrix: Any) -> Any:
    """The same voxels, with the axes stored in another order."""
    return matrix[:, [2, 0, 1, 3]]


def sheared(matrix: Any) -> Any:
    """Axes that are not at right angles, as of a tilted gantry."""
    made = matrix.copy()
    made[1, 2] += 0.15 * made[2, 2]
    return made


GEOMETRIES = {
    "RAS": affine((1, 1, 1)),
    "LPS": affine((0.8, 0.8, 2.5), signs=(-1, -1, 1)),
    "exchanged": exchanged(affine((1, 1.2, 1.5))),
    "oblique": affine((1, 1, 1.4), 25),
    "oblique_exchanged": exchanged(affine((1, 1.3, 1.4), -20, (-1, 1, 1))),
    "sheared": sheared(affine((1, 1, 2))),
}
PREPARATIONS: dict[str, dict[str, Any]] = {
    "none": {"orientation": None, "intensity": {"mode": "none"}},
    "zscore": {"orientation": "LPI", "intensity": {"mode": "zscore", "percentiles": [0.5, 99.5]}},
    "nonzero": {"intensity": {"mode": "zscore", "nonzero": True}, "spacing": [1.3, 1.1, 1.2]},
    "window": {
        "intensity": {"clip": [0, 700]},
        "spacing": [1.5, 1.5, 3],
        "crop_foreground": {"threshold": 60, "margin": 2},
    },
    "nnunet": {"intensity": {"mode": "zscore", "clip": [-100, 600], "mean": 90.0, "deviation": 150.0}},
    "rescale": {"orientation": None, "spacing": [2, 0.7, 1], "intensity": {"mode": "rescale", "percentiles": [1, 99]}},
}


def scan(path: Path, name: str) -> Path:
    """A bright box in noise with a border of air, stored as int16 with a slope."""
    rng = np.random.default_rng(list(GEOMETRIES).index(name))
    values = rng.integers(0, 100, SHAPE)
    values[4:12, 3:10, 2:9] += 500
    values[:2] = values[:, :2] = 0
    file = nibabel.Nifti1Image((values / 2).astype(np.int16), GEOMETRIES[name])
    file.header.set_slope_inter(2.0, 0.0)
    nibabel.save(file, path)
    return path


def prepared(path: Path, preparation: str) -> tuple[run_onnx.Image, run_onnx.Prepared, Volume]:
    """An image as the runner reads it, as it prepares it, and as `predict` prepares it."""
    data = DataConfig.model_validate({"patch": [8, 8, 8], **PREPARATIONS[preparation]})
    image = run_onnx.read_image([path], ["MR"])
    return image, run_onnx.prepare(image, input_settings(data, ["MR"], [0])), load_volume([path], None, data, None)


@pytest.mark.parametrize("preparation", PREPARATIONS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_preparation_and_the_way_back(tmp_path: Path, geometry: str, preparation: str) -> None:
    image, ours, theirs = prepared(scan(tmp_path / "scan.nii.gz", geometry), preparation)
    np.testing.assert_allclose(image.affine, theirs.original_affine, atol=1e-12)
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-9)
    if (geometry, preparation) == ("sheared", "nonzero"):
        return  # which voxels beside the air are exactly 0 after the interpolation depends on the last bits
    np.testing.assert_allclose(ours.values, theirs.image, rtol=1e-5, atol=1e-4)
    assert ours.background == pytest.approx(theirs.background, abs=1e-4)

    logits = torch.randn((3, *theirs.image.shape[1:]), generator=torch.Generator().manual_seed(0)) * 5
    mapping = original_to_prepared(theirs)
    box = slice(0, SHAPE[0]), slice(0, SHAPE[1]), slice(0, SHAPE[2])
    grid = grid_map(mapping, theirs.image.shape[1:], SHAPE)
    needed = grid.needed(box)
    assert needed is not None
    sampled = grid.sample(box, logits[(slice(None), *needed)], [side.start for side in needed])
    for sigmoid in (False, True):
        expected = summed_probabilities([sampled], box, 3, sigmoid=sigmoid)
        found = run_onnx.probabilities(logits.numpy(), mapping, box, sigmoid)
        # A coordinate that float32 rounds another way moves a value of these random logits by about 1e-4.
        np.testing.assert_allclose(found, expected.numpy(), atol=2e-4)


@pytest.mark.parametrize(("size", "patch", "overlap"), [(40, 16, 0.5), (41, 16, 0.25), (16, 16, 0.5), (33, 7, 0.9)])
def test_windows_are_those_of_monai(size: int, patch: int, overlap: float) -> None:
    interval = patch if size == patch else max(1, int(patch * (1 - overlap)))
    expected = [box[0].start for box in dense_patch_slices((size,), (patch,), (interval,))]
    assert run_onnx.window_starts(size, patch, overlap) == expected
    assert run_onnx.window_starts(patch - 3, patch, overlap) == [0]


@pytest.mark.parametrize("patch", [(16, 12, 9), (1, 32, 20), (64, 64, 32)])
@pytest.mark.parametrize("blend", ["gaussian", "constant"])
def test_weights_are_those_of_monai(patch: tuple[int, int, int], blend: str) -> None:
    expected = compute_importance_map(patch, mode=blend).numpy()
    np.testing.assert_allclose(run_onnx.window_weights(patch, blend), expected, rtol=1e-5)


def test_units_and_axes_of_length_one(tmp_path: Path) -> None:
    file = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4, 1), np.diag([900.0, 1000, 1200, 1]))
    file.header.set_xyzt_units("micron")
    nibabel.save(file, tmp_path / "scan.nii")
    image = run_onnx.read_image([tmp_path / "scan.nii"], ["MR"])
    assert image.values.shape == (1, 2, 3, 4)
    np.testing.assert_allclose(image.affine, np.diag([0.9, 1, 1.2, 1]))


def test_images_that_do_not_suit_are_named(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.ones(SHAPE, np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.ones(SHAPE, np.float32), np.diag([1.1, 1, 1, 1])), tmp_path / "b.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.full(SHAPE, np.nan, np.float32), np.eye(4)), tmp_path / "c.nii.gz")
    (tmp_path / "d.nii.gz").write_bytes(b"nothing")
    for names, channels, message in (
        ("a", ["T1", "FLAIR"], "expected 2: T1, FLAIR"),
        ("ab", ["T1", "FLAIR"], "lies on another grid"),
        ("c", ["T1"], "not finite"),
        ("d", ["T1"], "cannot be read"),
    ):
        with pytest.raises(run_onnx.RunError, match=message):
            run_onnx.read_image([tmp_path / f"{name}.nii.gz" for name in names], channels)


@pytest.mark.parametrize("program", ["../network.onnx", "{folder}/network.onnx", "sub/network.onnx", "..", ""])
def test_a_contract_names_no_network_of_another_folder(tmp_path: Path, program: str) -> None:
    pytest.importorskip("onnxruntime")
    folder = tmp_path / "theirs"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path, folder / "sub"):
        (place / "network.onnx").write_bytes(b"")
    contract = {"contract": 1, "members": [{"program": program.format(folder=tmp_path)}]}
    (folder / "contract.json").write_text(json.dumps(contract))
    with pytest.raises(run_onnx.RunError, match=r"contract.json: the network .* is not in this folder"):
        run_onnx.Network(folder)
