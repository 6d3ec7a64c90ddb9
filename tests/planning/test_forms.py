"""The plan of each kind of data set trains as it is, and predicts: CT with organs and vessels, MRI with regions."""

from __future__ import annotations

from pathlib import Path

import nibabel
import pytest

import fusionseg.train
from fusionseg import cli
from fusionseg.config import load_config
from fusionseg.data.formats.dataset import open_dataset
from fusionseg.data.synthetic.dataset import write_dataset

SHORT = ("device=cpu", "train.steps=2", "train.threads=1", "log={every: 1, tensorboard: false}")


def plan_train_predict(data: Path, folder: Path) -> Path:
    """Plan for this machine, train two steps, predict one training image; return the configuration."""
    config, case = folder / "planned.yaml", open_dataset(data).training[0]
    assert cli.main(["plan", str(data), "-o", str(config), "--workers", "1"]) == 0
    assert fusionseg.train.main(["--config", str(config), f"output={folder}", *SHORT]) == 0
    inputs = folder / "inputs"
    inputs.mkdir()
    for image in case.images:
        (inputs / image.name).symlink_to(image)
    assert (
        cli.main(["predict", str(folder / "planned"), "--input", str(inputs), "--output", str(folder / "masks")]) == 0
    )
    (mask,) = (folder / "masks").glob("*.nii.gz")
    assert nibabel.load(mask).shape == nibabel.load(case.images[0]).shape[:3]
    return config


@pytest.mark.long
@pytest.mark.parametrize("form", ["vessels", "organs", "regions"])
def test_synthetic_forms(form: str, tmp_path: Path) -> None:
    data = tmp_path / form
    write_dataset(data, form=form, cases=3, size=48, workers=1)
    config = load_config(plan_train_predict(data, tmp_path))
    assert config.data.folds == 3
    modes = {setting.mean is not None for setting in config.data.intensity.of_channels(open_dataset(data).channels)}
    assert modes == {form != "regions"}  # CT has a mean of the data set, MRI one of each volume
    assert bool(config.augment.mirror_pairs) is (form == "organs")  # left and right kidney


@pytest.mark.long
@pytest.mark.parametrize("name", ["hippocampus", "sarcoma_ct", "brain_tumour"])
def test_real_data(name: str, real_data: Path, tmp_path: Path) -> None:
    config = load_config(plan_train_predict(real_data / name, tmp_path))
    anisotropic = any(len(set(steps)) > 1 for steps in config.model.level_strides)
    assert anisotropic is (name != "hippocampus")
