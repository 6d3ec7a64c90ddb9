"""Real CT volumes with anisotropic voxels: check, prepare, train, predict, evaluate."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel
import numpy as np
import pytest

from end_to_end.runs import COMMANDS, REPOSITORY, TRAIN, Program, records

pytestmark = pytest.mark.real_data

CONFIG = REPOSITORY / "configs" / "sarcoma_unet.yaml"


@pytest.fixture(scope="module")
def sarcoma(real_data: Path) -> Path:
    return real_data / "sarcoma_ct"


@pytest.fixture(scope="module")
def run(program: Program, sarcoma: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten steps of the shipped configuration with fewer channels."""
    output = tmp_path_factory.mktemp("sarcoma")
    options = (
        f"data.root={sarcoma}",
        f"output={output}",
        "model.channels=[4, 8, 16, 32, 64]",
        "validate={every: 10, overlap: 0}",
        "schedule.warmup=2",
        "train.steps=10",
        "data.workers=1",
    )
    assert program.warm(COMMANDS, "check", sarcoma, "--patch", 96, 96, 32).wait().status == 0
    prepared = program.warm(COMMANDS, "prepare", "--config", CONFIG, *options).wait().expect(0)
    assert "12 prepared" in prepared.out
    program.warm(TRAIN, "--config", CONFIG, *options).wait().expect(0)
    return output / "sarcoma_unet"


def test_trains_on_real_data(run: Path) -> None:
    (validation,) = records(run, "val")
    assert validation["cases"] == 3
    assert records(run, "end")[-1]["status"] == "completed"


def test_masks_have_the_geometry_of_their_images(program: Program, run: Path, sarcoma: Path, tmp_path: Path) -> None:
    images = sorted((sarcoma / "imagesTr").iterdir())
    command = ("predict", run, "--input", sarcoma / "imagesTr", "--output", tmp_path, "--overlap", 0)
    program.warm(COMMANDS, *command).wait().expect(0)
    assert len(images) == 12
    assert sorted(path.name for path in tmp_path.glob("*.nii.gz")) == [path.name for path in images]
    for path in images:
        image, mask = nibabel.load(path), nibabel.load(tmp_path / path.name)
        assert mask.shape == image.shape
        np.testing.assert_array_equal(mask.affine, image.affine)
        assert mask.get_data_dtype() == np.uint8
        assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1}


def test_evaluation_has_the_voxel_counts_of_the_files(program: Program, run: Path, sarcoma: Path) -> None:
    program.warm(COMMANDS, "evaluate", run, "--overlap", 0).wait().expect(0)
    with (run / "evaluation" / "cases.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3
    for row in rows:
        label = np.asarray(nibabel.load(sarcoma / "labelsTr" / f"{row['case']}.nii.gz").dataobj)
        assert int(row["voxels_true"]) == int((label == 1).sum())
