"""The digest of an image: the same for the same voxels however they are stored, another for other voxels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import preparing
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from fusionseg.config import DataConfig, RunConfig
from fusionseg.data.formats.dataset import open_dataset
from fusionseg.data.formats.image_digest import ImageSet, image_digest
from fusionseg.data.preprocessing.volume import load_volume

IMAGE = np.random.default_rng(0).integers(-500, 500, (5, 6, 7)).astype(np.int16)
AFFINE = np.array([[1.0, 0.1, 0, -3], [-0.1, 1.2, 0, 8], [0, 0, 2.5, 1], [0, 0, 0, 1]])


def load(path: Path, image: np.ndarray, affine: np.ndarray = AFFINE) -> str:
    nibabel.save(nibabel.Nifti1Image(image, affine), path)
    return load_volume([path], None, DataConfig(), None).digest


@pytest.mark.parametrize("axes", ["RAS", "LPS", "AIR", "SPL"])
def test_storage_does_not_change_it(tmp_path: Path, axes: str) -> None:
    expected = load(tmp_path / "a.nii.gz", IMAGE)
    turn = ornt_transform(io_orientation(AFFINE), axcodes2ornt(axes))
    turned = nibabel.orientations.apply_orientation(IMAGE, turn)
    affine = AFFINE @ inv_ornt_aff(turn, IMAGE.shape)
    for name, dtype in (("b.nii.gz", np.int16), ("c.nii", np.float64), ("d.nii", np.int32)):
        assert load(tmp_path / name, turned.astype(dtype), affine) == expected


def test_other_voxels_change_it(tmp_path: Path) -> None:
    changed = IMAGE.copy()
    changed[2, 3, 4] += 1
    digests = [load(tmp_path / "x.nii", image) for image in (IMAGE, changed, IMAGE[::-1].copy(), IMAGE[:-1])]
    # The same bytes in another shape are another image.
    digests.append(load(tmp_path / "x.nii", IMAGE.reshape(6, 5, 7)))
    assert len(set(digests)) == 5


def test_both_zeros_are_one_value() -> None:
    zeros = np.zeros((1, 2, 2, 2), np.float32)
    assert image_digest(zeros, np.eye(4)) == image_digest(-zeros, np.eye(4))


def test_the_prepared_record_keeps_it(tmp_path: Path, balls: Path, tiny_config: Callable[..., RunConfig]) -> None:
    config = tiny_config(balls, tmp_path, data={"spacing": [2, 2, 2], "crop_foreground": {"threshold": 150}})
    dataset = open_dataset(balls)
    store = preparing.run(config).store
    assert len(store.cases) == len(dataset.training)
    for case in dataset.training:
        plain = load_volume(case.images, case.label, DataConfig(), dataset.scheme)
        record = store.cases[case.name]
        assert (record.digest, record.label_digest) == (plain.digest, plain.label_digest)
        assert plain.digest and plain.label_digest


def test_an_image_is_known_by_any_of_its_channels_that_varies() -> None:
    t1, t2, other = (np.random.default_rng(seed).normal(size=(1, 3, 4, 5)).astype(np.float32) for seed in range(3))
    empty = np.zeros_like(t1)

    def digest(*channels: np.ndarray) -> str:
        return image_digest(np.concatenate(channels), np.eye(4))

    known = ImageSet.of([digest(t1, t2, empty)])
    assert digest(t2, t1) in known and digest(other, t2) in known and digest(t1) in known
    assert digest(other) not in known
    assert digest(other, empty) not in known  # an empty channel is nobody's
    assert digest(empty) not in known
    assert digest(empty) in ImageSet.of([digest(empty)])
