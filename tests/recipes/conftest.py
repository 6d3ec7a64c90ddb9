"""Shared by the tests of the recipes: synthetic data of a form, and the way from a shipped configuration to masks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

import fusionseg
import fusionseg.train
from fusionseg import cli
from fusionseg.config import RunConfig
from fusionseg.data.synthetic.dataset import write_dataset
from fusionseg.runs.json_files import read_object

# Two steps on one thread, without pictures: what every recipe can do without.
SHORT = (
    *("device=cpu", "train.steps=2", "train.threads=1", "train.precision=fp32", "train.global_batch=2"),
    *("train.micro_batch=2", "data.folds=2", "data.workers=1", "validate.every=2", "checkpoint.every=2"),
    *("log={every: 1, tensorboard: false}",),
)


@dataclass(frozen=True)
class RecipeRun:
    """A run of a recipe that was trained, evaluated, and asked for the masks of a case of its data set.

    Args:
        folder: of the run.
        config: the configuration that was trained.
        summary: content of evaluation/summary.json.
        image: the first image of the data set, which was predicted.
        mask: its mask, in the voxel order of the file.
    """

    folder: Path
    config: RunConfig
    summary: dict[str, Any]
    image: Any
    mask: NDArray[Any]


SyntheticData = Callable[..., Path]
RunRecipe = Callable[..., RecipeRun]


@pytest.fixture(scope="session")
def synthetic_data(tmp_path_factory: pytest.TempPathFactory) -> SyntheticData:
    """`synthetic_data(form, size=24, cases=4)`: the folder of a synthetic data set. Shared: do not change its files."""

    @functools.cache
    def write(form: str, size: int = 24, cases: int = 4) -> Path:
        folder = tmp_path_factory.mktemp("synthetic") / form
        return write_dataset(folder, form=form, size=size, cases=cases, seed=0, workers=1).parent

    return write


@pytest.fixture(scope="session")
def run_recipe(tmp_path_factory: pytest.TempPathFactory) -> RunRecipe:
    """`run_recipe(name, data, "key=value", ...)`: train a shipped configuration for two steps, evaluate, predict."""

    def run(name: str, data: Path, *overrides: str) -> RecipeRun:
        output = tmp_path_factory.mktemp("recipes")
        settings = (f"data.root={data}", f"output={output}", *SHORT, *overrides)
        assert fusionseg.train.main(["--config", name, *settings]) == 0
        folder = output / name
        assert cli.main(["evaluate", str(folder)]) == 0
        image = min((data / "imagesTr").glob("*.nii.gz"))
        assert cli.main(["predict", str(folder), "--input", str(image), "--output", str(output / "masks")]) == 0
        (mask,) = (nibabel.load(path) for path in (output / "masks").glob("*.nii.gz"))
        loaded = nibabel.load(image)
        assert np.allclose(mask.affine, loaded.affine, atol=1e-4) and mask.shape == loaded.shape[:3]
        return RecipeRun(
            folder,
            fusionseg.load_config(folder / "config.yaml"),
            read_object(folder / "evaluation/summary.json"),
            loaded,
            np.asarray(mask.dataobj),
        )

    return run
